"""Checkpoints as their authors publish them, where transformers or vLLM would read them otherwise than rlvr needs.

MiMo is a Qwen2 with MTP layers, and its tensors have Qwen2's names; only its `config.json` says "mimo" and points to
Python files beside it. It is read through a folder of links with a `config.json` as `PolicyModel.save` writes it.

Qwen3.5 carries a vision tower and names its tensors accordingly. Its text model and MTP layer are copied out once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlvr.cache import cache_folder, made_aside
from rlvr.errors import ConfigError

_VISION, _TEXT = "model.visual.", "model.language_model."


def readable(folder: Path) -> Path:
    """`folder` itself, or the one to read it through, made once in `$RLVR_CACHE` or `~/.cache/rlvr`.

    Raises `ConfigError` for one that is none of the kind that rlvr trains.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    match config.get("model_type"):
        case "mimo":
            _check(folder, config, num_nextn_predict_layers=1, attention_bias=True, use_sliding_window=False)
            config = {key: value for key, value in config.items() if key != "auto_map"} | {"model_type": "qwen2"}
            return _made_once(folder, "mimo", config, _link)
        case "qwen3_5":
            shared = {key: config[key] for key in ("tie_word_embeddings", "dtype") if key in config}
            config = shared | config["text_config"] | {"architectures": ["Qwen3_5ForCausalLM"]}
            _check(folder, config, mtp_num_hidden_layers=1)
            return _made_once(folder, "qwen3_5", config, _copy_text)
        case _:
            return folder


def _check(folder: Path, config: dict[str, Any], **expected: object) -> None:
    for setting, value in expected.items():
        if (found := config.get(setting, value)) != value:
            raise ConfigError(
                f"policy {str(folder)!r} has {setting} = {json.dumps(found)} in its config.json; of its kind rlvr "
                f"trains those with {json.dumps(value)}: choose another checkpoint"
            )


def _made_once(folder: Path, kind: str, config: dict[str, Any], fill: Callable[[list[Path], Path], None]) -> Path:
    files = sorted(
        file for file in folder.iterdir() if file.is_file() and file.suffix != ".py" and file.name != "config.json"
    )
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(f"{folder.resolve()} {states} {json.dumps(config)}".encode()).hexdigest()[:12]
    final = cache_folder() / f"{kind}-{key}"
    if not final.is_dir():
        with made_aside(final) as partial:
            fill(files, partial)
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return final


def _link(files: list[Path], target: Path) -> None:
    for file in files:
        (target / file.name).symlink_to(file.resolve())


def _copy_text(files: list[Path], target: Path) -> None:
    """All tensors but the vision tower's, under the names of a text model; one file for each."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = [file for file in files if file.suffix == ".safetensors"]
    _link([file for file in files if file not in weights and file.name != "model.safetensors.index.json"], target)
    where: dict[str, str] = {}
    for file in weights:
        with safe_open(file, "pt") as tensors:
            kept = {
                f"model.{name.removeprefix(_TEXT)}" if name.startswith(_TEXT) else name: tensors.get_tensor(name)
                for name in tensors.keys()  # noqa: SIM118 - no mapping
                if not name.startswith(_VISION)
            }
        if kept:
            save_file(kept, target / file.name, metadata={"format": "pt"})
            where |= dict.fromkeys(kept, file.name)
    if len(set(where.values())) > 1:
        index = {"metadata": {}, "weight_map": where}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
