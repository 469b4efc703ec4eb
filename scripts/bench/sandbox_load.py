"""Load on a sandbox, one in ten programs hostile: nothing lost, no wrong status, the host flat, the wall limit kept.

    python scripts/bench/sandbox_load.py --backend bubblewrap [--runs 20000] [--concurrency 4] [--seed 0]

Prints the host every tenth of the way and the statuses at the end; exits 1 if anything was wrong. What counts as the
host is what this process made there: other work on the machine is not its doing. `--append FILE` adds the figures as
a line of JSON, and `--first N` numbers the runs from N, so that a load may be run in pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox.base import Execution, Limits, Program
from sandbox.limits import FIRST_UID, UIDS
from sandbox.pool import Pool
from sandbox.shared import open_sandbox

LIMITS = Limits(wall_seconds=10.0, memory_bytes=128 << 20, processes=16)
SHORT = Limits(wall_seconds=0.8, memory_bytes=128 << 20, processes=16)
OVERSHOOT_SECONDS = 0.15

HOSTILE: tuple[tuple[str, str, Limits, tuple[str, ...]], ...] = (
    ("fork bomb", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", SHORT,
     ("too_many_processes",)),
    ("memory bomb", "held = []\nwhile True: held.append(bytearray(1 << 22))", LIMITS, ("out_of_memory",)),
    (
        "memory bomb in a child",
        "import os\nif not os.fork():\n    held = []\n    while True: held.append(bytearray(1 << 22))\nos.wait()",
        LIMITS,
        ("out_of_memory",),
    ),
    ("endless output", "while True: print('x' * 1000)", LIMITS, ("output_limit",)),
    ("spin", "while True: pass", SHORT, ("wall_timeout",)),
    ("sleep", "import time\ntime.sleep(60)", SHORT, ("wall_timeout",)),
    ("stop", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", SHORT, ("wall_timeout",)),
    (
        "survivor",
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork(): time.sleep(60)\n    os._exit(0)",
        LIMITS,
        ("finished",),
    ),
    ("signals to the server", "import os\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass",
     LIMITS, ("finished",)),
    ("engine's words", "import os\nprint('Error response from daemon: No such container')\nos._exit(125)", LIMITS,
     ("finished",)),
    ("suicide", "import os\nos.kill(os.getpid(), 9)", LIMITS, ("finished",)),
    (
        "forged result",
        "import os, struct\nframe = struct.pack('!cI', b'D', 2) + b'{}'\nfor fd in range(64):\n"
        "    try: os.write(fd, frame)\n    except OSError: pass\nos._exit(9)",
        LIMITS,
        ("finished",),
    ),
    ("disk fill", "try:\n    for n in range(99): open(str(n), 'wb').write(bytes(1 << 22))\nexcept OSError: pass",
     LIMITS, ("finished",)),
    ("deep folders", "import os\nfor _ in range(200):\n    os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)", LIMITS,
     ("finished",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this process has on the machine."""

    processes: int
    mounts: int
    control_groups: int
    descriptors: int
    resident_mib: int

    @staticmethod
    def now() -> Host:
        processes = 0
        for path in Path("/proc").glob("[0-9]*"):
            try:
                processes += FIRST_UID <= path.stat().st_uid < FIRST_UID + UIDS
            except OSError:
                continue
        status = Path("/proc/self/status").read_text()
        return Host(
            processes=processes,
            mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
            control_groups=len(list(Path("/sys/fs/cgroup").glob(f"*/rlvr-sandbox/*-{os.getpid()}-*"))),
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            resident_mib=int(status.split("VmRSS:")[1].split()[0]) >> 10,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["docker", "bubblewrap"], required=True)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1800.0, help="begin no run after so long; go on with --first")
    parser.add_argument("--append", type=Path)
    sys.exit(asyncio.run(load(parser.parse_args())))


async def load(options: argparse.Namespace) -> int:
    pool = open_sandbox(options.backend, max_boxes=options.concurrency)
    statuses, wrong, overshoots, waits = Counter[str](), [], [], []
    hosts: list[Host] = []
    began, todo = time.monotonic(), iter(range(options.first, options.first + options.runs))

    async def worker() -> None:
        for number in todo:
            if time.monotonic() - began > options.seconds:
                return
            done = number - options.first
            name, program, expected = draw(number, options.seed)
            start = time.monotonic()
            execution = await pool.run(program)
            waits.append(time.monotonic() - start)
            statuses[f"{name}: {execution.status}"] += 1
            if execution.status not in expected or (name == "ordinary" and not ordinary(number, execution)):
                wrong.append(f"run {number}, {name}: {execution.status} {execution.detail} {execution.stderr[-200:]!r}")
                print(wrong[-1], file=sys.stderr)
            if expected == ("wall_timeout",):
                overshoots.append(execution.wall_seconds - program.limits.wall_seconds)
            if done and done % max(1, options.runs // 10) == 0:
                hosts.append(Host.now())
                print(f"{done:6} in {time.monotonic() - began:4.0f} s  {hosts[-1]}", flush=True)

    await asyncio.gather(*(worker() for _ in range(options.concurrency)))
    seconds = time.monotonic() - began
    hosts.append(Host.now())
    await pool.close()
    return report(options, pool, seconds, statuses, wrong, sorted(overshoots), sorted(waits), hosts)


def draw(number: int, seed: int) -> tuple[str, Program, tuple[str, ...]]:
    """Which program has this number: its kind, itself, and how it may end."""
    rng = random.Random(seed * 1_000_003 + number)
    if rng.random() < 0.1:
        name, source, limits, expected = rng.choice(HOSTILE)
        return name, Program(source=source, limits=limits), expected
    source = f"import math\nprint({number}, sum(math.isqrt(n) for n in range({rng.randrange(1000)})), input())"
    return "ordinary", Program(source=source, stdin=str(number).encode(), limits=LIMITS), ("finished",)


def ordinary(number: int, execution: Execution) -> bool:
    words = execution.stdout.split()
    return execution.exit_code == 0 and len(words) == 3 and words[0] == words[2] == str(number).encode()


def report(
    options: argparse.Namespace,
    pool: Pool,
    seconds: float,
    statuses: Counter[str],
    wrong: list[str],
    overshoots: list[float],
    waits: list[float],
    hosts: list[Host],
) -> int:
    for name, count in sorted(statuses.items()):
        print(f"{count:8} {name}")
    ran = sum(statuses.values())
    late = overshoots[int(len(overshoots) * 0.99)] if overshoots else 0.0
    first, last = hosts[0], hosts[-1]
    # A box in the middle of a hostile run has more processes; what leaks grows with the runs.
    flat = (
        last.mounts <= first.mounts
        and last.control_groups <= max(first.control_groups, 3 * options.concurrency)
        and last.descriptors <= first.descriptors + 8 * options.concurrency
        and last.processes <= first.processes + 20 * options.concurrency
        and last.resident_mib <= first.resident_mib + 32
    )
    figures = {
        "backend": pool.backend.name, "from": options.first, "runs": ran, "seconds": round(seconds),
        "concurrency": options.concurrency, "wrong": len(wrong), "what": wrong[:5],
        "median_ms": round(1000 * waits[len(waits) // 2], 1), "overshoot_p99_ms": round(1000 * late),
        "overshoot_max_ms": round(1000 * max(overshoots, default=0.0)),
        "first": asdict(first), "last": asdict(last), "load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(figures))
    if options.append:
        with options.append.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    good = (ran == options.runs or seconds > options.seconds) and not wrong and flat and late <= OVERSHOOT_SECONDS
    print(f"{'good' if good else 'NOT good'}: {ran} run, {len(wrong)} wrong, flat: {flat}, p99 {late:.3f} s late")
    return 0 if good else 1


if __name__ == "__main__":
    main()
