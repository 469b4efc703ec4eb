"""The settings that an episode was played under: those of its run, as they were when its log was begun.

runs/x/episodes/train-002.jsonl    by runs/x/configs/002.json; of a run without these, by runs/x/config.json
anywhere/episodes.jsonl            by the config.json beside it (`rlvr eval`), else by the one of the folder above
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlvr.plugins import load_environment

_LOG = re.compile(r"(?:train|eval)-(\d+)\.jsonl(?:\.gz|\.zst)?")


def settings_of(environment: str, file: str) -> tuple[str, dict[str, Any]]:
    """The name to load an episode's environment by, and its settings; without a configuration, the defaults.

    Raises `LookupError` where the configuration does not have the environment, and `PluginError`.
    """
    config = _config_of(Path(file))
    if config is None:
        return environment, {}
    sections = json.loads(config.read_text()).get("environments", [])
    for section in sections:
        if (section.get("label") or section["name"]) == environment:
            return section["name"], section["settings"]
    # Without a label, tasks carry the class's own name.
    for section in sections:
        if not section.get("label") and load_environment(section["name"]).name == environment:
            return section["name"], section["settings"]
    raise LookupError(f"{environment!r} is not in {config}")


def _config_of(file: Path) -> Path | None:
    folder = file.parent
    candidates = [folder / "config.json", folder.parent / "config.json"]
    if log := _LOG.fullmatch(file.name):
        candidates.insert(0, folder.parent / "configs" / f"{log[1]}.json")
    return next((candidate for candidate in candidates if candidate.is_file()), None)
