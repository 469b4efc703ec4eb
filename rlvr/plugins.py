"""Environments by name: an installed distribution's entry point, `path/to/file.py:Class`, or a URL that serves one."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlvr.errors import ConfigError, PluginError
from rlvr.interfaces import Environment

GROUP = "rlvr.environments"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One line of `rlvr env list`. `problem` says why it cannot be used, where it cannot."""

    name: str
    distribution: str
    version: str
    summary: str
    problem: str = ""


def load_environment(name: str) -> type[Environment]:
    """The class behind a name. Raises `PluginError`, which lists what is installed."""
    if name.startswith(("http://", "https://")):
        kind = _from_url(name)
    else:
        kind = _from_file(name) if ".py:" in name else _from_entry_point(name)
    if not (isinstance(kind, type) and issubclass(kind, Environment)):
        raise PluginError(
            f"environment {name!r} leads to {kind!r}, which is no subclass of rlvr.interfaces.Environment"
        )
    missing = sorted(kind.__abstractmethods__ | ({"name"} - set(dir(kind))))
    if missing:
        raise PluginError(f"environment {name!r}: class {kind.__name__} lacks {', '.join(missing)}; write them")
    return kind


def make_environment(name: str, settings: dict[str, Any]) -> Environment:
    """An environment object with validated settings. Raises `PluginError`, `ConfigError`."""
    kind = load_environment(name)
    try:
        return kind(kind.Settings.model_validate(settings))
    except ValidationError as error:
        known = ", ".join(kind.Settings.model_fields) or "none"
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"settings of environment {name!r}: {lines} (known settings: {known})") from None


def list_environments() -> list[PluginInfo]:
    """All that are installed, by name."""
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        distribution = entry.dist
        summary = problem = ""
        try:
            summary = load_environment(entry.name).summary
        except PluginError as error:
            problem = str(error)
        found.append(
            PluginInfo(
                name=entry.name,
                distribution=distribution.name if distribution else "?",
                version=distribution.version if distribution else "?",
                summary=summary,
                problem=problem,
            )
        )
    return found


def _from_entry_point(name: str) -> Any:
    entries: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in entries:
        installed = ", ".join(sorted(entries)) or "none"
        raise PluginError(
            f"no environment named {name!r} is installed (installed: {installed}); install its distribution, or write "
            "path/to/file.py:Class or http://host:port"
        )
    try:
        return entries[name].load()
    except Exception as error:
        raise PluginError(f"environment {name!r} ({entries[name].value}) cannot be imported: {error!r}") from error


def _from_url(url: str) -> Any:
    from rlvr.remote.client import remote_environment

    return remote_environment(url)


def _from_file(name: str) -> Any:
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text).absolute()
    # A name of its own: a file may be called as a module is.
    unique = f"rlvr_environment_{zlib.crc32(str(path).encode()):08x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PluginError(f"environment {name!r}: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic resolve annotations through the module's name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise PluginError(f"environment {name!r} cannot be imported: {error!r}") from error
    if not hasattr(module, attribute):
        raise PluginError(f"environment {name!r}: {path.name} defines no {attribute!r}")
    return getattr(module, attribute)
