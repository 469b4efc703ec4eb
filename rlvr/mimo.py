"""Published MiMo checkpoints, by names that transformers and vLLM know without code from the checkpoint.

A MiMo is a Qwen2 with MTP layers, and its tensors have Qwen2's names; only its `config.json` says "mimo" and points to
Python files beside it. So such a folder is read through another one: links to its files, and a `config.json` as rlvr
itself writes it (`PolicyModel.save`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rlvr.errors import ConfigError


def readable(folder: Path) -> Path:
    """`folder` itself, or for a MiMo the folder to read it through, in `$RLVR_CACHE` or `~/.cache/rlvr`.

    Raises `ConfigError` for a MiMo that is none of the kind that rlvr trains.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if config.get("model_type") != "mimo":
        return folder
    _check(folder, config)
    files = sorted(each for each in folder.iterdir() if each.suffix != ".py" and each.is_file() and each != file)
    config = {key: value for key, value in config.items() if key != "auto_map"} | {"model_type": "qwen2"}
    key = hashlib.sha256(f"{folder.resolve()} {[each.name for each in files]} {json.dumps(config)}".encode())
    cache = Path(os.environ.get("RLVR_CACHE") or Path.home() / ".cache" / "rlvr")
    final = cache / f"mimo-{key.hexdigest()[:12]}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=cache))
    for each in files:
        (partial / each.name).symlink_to(each.resolve())
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    try:
        partial.rename(final)
    except OSError:  # another program was faster
        shutil.rmtree(partial)
    return final


def _check(folder: Path, config: dict[str, Any]) -> None:
    for setting, value, expected in (
        ("num_nextn_predict_layers", config.get("num_nextn_predict_layers"), 1),
        ("attention_bias", config.get("attention_bias", True), True),
        ("use_sliding_window", config.get("use_sliding_window", False), False),
    ):
        if value != expected:
            raise ConfigError(
                f"policy {str(folder)!r} is a MiMo with {setting} = {json.dumps(value)}; rlvr trains those with "
                f"{json.dumps(expected)}, as MiMo-7B has it: choose another checkpoint"
            )
