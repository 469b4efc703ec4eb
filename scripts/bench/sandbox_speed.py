"""What a run of `print(1)` costs: warm and cold on each backend, and `docker run`, side by side.

    scripts/with-docker-engine .venv/bin/python scripts/bench/sandbox_speed.py [--seconds 4]

Warm: a box that is ready. Cold: a box of its own for each run, made, used and removed. Each is measured alone (median),
and in runs a second with 2 and 8 at once. A backend that cannot run here is left out, and named.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

from sandbox.base import Program
from sandbox.box import BoxSpec
from sandbox.docker import image_name
from sandbox.pool import Backend, Pool, SandboxUnavailable
from sandbox.shared import Kind, open_backend

PROGRAM = Program(source="print(1)")
Once = Callable[[], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure")
    asyncio.run(bench(parser.parse_args().seconds))


async def bench(seconds: float) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Linux {os.uname().release}\n")
    print(f"{'':20}{'median':>10}{'2 at once':>14}{'8 at once':>14}{'warm / cold':>14}")
    kinds: tuple[Kind, ...] = ("bubblewrap", "docker")
    for kind in kinds:
        try:
            backend = open_backend(kind)
        except SandboxUnavailable as error:
            print(f"{kind}: left out: {error}")
            continue
        cold = await row(f"{kind}, cold", lambda backend=backend: in_a_new_box(backend), seconds)  # type: ignore[misc]
        if kind == "docker":
            await row("docker run", docker_run, seconds)
        pool = Pool(backend, max_boxes=8)
        warm = await row(f"{kind}, warm", lambda pool=pool: in_a_warm_box(pool), seconds)  # type: ignore[misc]
        print(f"{'':58}{warm / cold:>13.0f}x")
        await pool.close()


async def row(name: str, once: Once, seconds: float) -> float:
    """Print the figures of one way; the best runs a second."""
    await asyncio.gather(*(once() for _ in range(8)))
    alone: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.monotonic()
        await once()
        alone.append(time.monotonic() - start)
    rates = [await rate(once, number, seconds) for number in (2, 8)]
    print(f"{name:20}{1000 * statistics.median(alone):>7.1f} ms{rates[0]:>12.1f}/s{rates[1]:>12.1f}/s", flush=True)
    return max(rates)


async def rate(once: Once, at_once: int, seconds: float) -> float:
    done, start = 0, time.monotonic()

    async def worker() -> None:
        nonlocal done
        while time.monotonic() < start + seconds:
            await once()
            done += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return done / (time.monotonic() - start)


async def in_a_warm_box(pool: Pool) -> None:
    assert (await pool.run(PROGRAM)).stdout == b"1\n"


async def in_a_new_box(backend: Backend) -> None:
    box = await backend.start(BoxSpec.of(PROGRAM))
    assert (await box.run(PROGRAM, None)).stdout == b"1\n"
    await box.close()


async def docker_run() -> None:
    argv = ("docker", "run", "--rm", "--network=none", image_name("python"), "python3", "-c", "print(1)")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out == b"1\n"


if __name__ == "__main__":
    main()
