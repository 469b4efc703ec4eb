"""Memory and speed of `rlvr verify` over many records, and of `--diff` with an output as long.

    python scripts/bench/verify_records.py [--records 1000000] [--folder F]

With a folder, the files stay there; an output that it holds is not made again.

Memory is the proportional set size of the command and all of its children, looked at every half second.
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
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        source, out = folder / "records.jsonl", folder / "verdicts.jsonl"
        with source.open("w") as file:
            for number in range(options.records):
                completion = f"So it is \\boxed{{{number if number % 3 else number + 1}}}."
                record = {"id": f"r{number}", "verifier": "math", "completion": completion, "reference": str(number)}
                file.write(json.dumps(record) + "\n")
        if not out.exists():
            _measure("--out", [str(source), "--out", str(out)], options.records)
        _measure("--out, --diff", [str(source), "--out", f"{out}.new", "--diff", str(out)], options.records)


def _measure(name: str, arguments: list[str], records: int) -> None:
    start, most = time.monotonic(), 0
    process = psutil.Popen([sys.executable, "-m", "rlvr.cli", "verify", *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, _tree(process))
        time.sleep(0.5)
    seconds = time.monotonic() - start
    print(
        f"{name:16}{records / seconds:>8,.0f} records/s{most / 1e6:>8.0f} MB at most, exit {process.returncode}",
        flush=True,
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
