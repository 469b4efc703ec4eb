"""Folders that are made once and kept: never half made under their name, whoever else makes the same one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$RLVR_CACHE`, else `~/.cache/rlvr`."""
    return Path(os.environ.get("RLVR_CACHE") or Path.home() / ".cache" / "rlvr")


@contextmanager
def made_aside(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, which takes its name when the block ends, unless another program was faster.

    It goes away if the block raises. Everybody may read it, as any folder of a model.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
