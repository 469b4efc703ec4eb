"""What runs inside a box: the fork server (`server`) and what its child does to become a program (`program`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def text() -> str:
    """The two as one program, for `python -c`: a box has nothing of ours to import."""
    here = Path(__file__)
    program, server = (here.with_name(name).read_text(encoding="utf-8") for name in ("program.py", "server.py"))
    # This one must stand first in a text, and does so already.
    return program + server.replace("from __future__ import annotations\n", "")
