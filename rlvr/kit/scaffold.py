"""`rlvr env new`: a copy of the distribution in `templates/`, under a name of its own."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import as_file, files
from pathlib import Path

from rlvr.errors import ConfigError
from rlvr.plugins import list_environments

_TEMPLATE_NAME = "my_environment"


def write(name: str, folder: Path | None = None) -> Path:
    """The folder that was written. Raises `ConfigError` for a name or a folder that cannot be used."""
    check_name(name)
    target = folder or Path(name.replace("_", "-"))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already; choose another --folder, or another name")
    with as_file(files("rlvr.kit") / "templates" / "new-environment") as template:
        for source in sorted(template.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                copy = target / _renamed(str(source.relative_to(template)), name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(_renamed(source.read_text(encoding="utf-8"), name), encoding="utf-8")
    return target


def check_name(name: str) -> None:
    """Whether a package and an entry point can go by it."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} is no name for an environment: lower-case words joined by _, such as word_count")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(f"{name!r} is a word of Python's; choose another, such as {name}_task")
    if name in {plugin.name for plugin in list_environments()}:
        raise ConfigError(f"an environment named {name!r} is installed already; choose another name")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"a module named {name!r} exists, and would be hidden; choose another, such as {name}_task")


def _renamed(text: str, name: str) -> str:
    title = "".join(word.capitalize() for word in name.split("_"))
    text = text.replace("MyEnvironment", title).replace("MySettings", f"{title}Settings")
    text = text.replace("MyVerifier", f"{title}Verifier")
    return text.replace(_TEMPLATE_NAME, name).replace(_TEMPLATE_NAME.replace("_", "-"), name.replace("_", "-"))
