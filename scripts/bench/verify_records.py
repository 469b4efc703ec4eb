"""Memory and speed of `rlvr verify` over many records, alone and with the index of `--diff`.

    python scripts/bench/verify_records.py [--records 1000000] [--only out|diff]

Memory is the proportional set size of the command and all of its children, looked at every half second. The old output
that `--diff` reads is as long as the new one, and says that every verdict was otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("out", "diff"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, old, out = (Path(name) / f"{each}.jsonl" for each in ("records", "old", "out"))
        with source.open("w") as file, old.open("w") as before:
            for number in range(options.records):
                completion = f"So it is \\boxed{{{number if number % 3 else number + 1}}}."
                record = {"id": f"r{number}", "verifier": "math", "completion": completion, "reference": str(number)}
                place = {"id": f"r{number}", "file": str(source), "line": number + 1}
                file.write(json.dumps(record) + "\n")
                before.write(json.dumps(place | {"verifier": "math", "outcome": "invalid", "reason": "old"}) + "\n")
        for mode in ("out", "diff"):
            if options.only in (None, mode):
                more = ["--diff", str(old)] if mode == "diff" else []
                _measure(mode, [str(source), "--out", str(out), *more], options.records)


def _measure(name: str, arguments: list[str], records: int) -> None:
    start, most = time.monotonic(), 0
    process = psutil.Popen([sys.executable, "-m", "rlvr.cli", "verify", *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, _tree(process))
        time.sleep(0.5)
    rate = records / (time.monotonic() - start)
    print(
        f"--{name:6}{rate:>8,.0f} records a second, {most / 1e6:.0f} MB at most, exit {process.returncode}", flush=True
    )


def _tree(process: psutil.Process) -> int:
    total = 0
    with suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += each.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
