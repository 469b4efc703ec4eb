"""A run tells what happened, leaves nothing, and is never blamed for what was done to its box."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.attacks import ATTACKS
from sandbox.attacks.escapes import REMEMBER
from sandbox.base import Conversation, Execution, Language, Limits, Program
from sandbox.bubblewrap import Bubblewrap
from sandbox.pool import TRIES, Pool
from sandbox.shared import Kind, open_sandbox

BACKENDS = ["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture(params=BACKENDS)
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[Pool]:
    kind: Kind = request.param
    pool = open_sandbox(kind, max_boxes=4)
    yield pool
    await pool.close()


async def execute(pool: Pool, source: str, **limits: Any) -> Execution:
    return await pool.run(Program(source=source, limits=Limits(**limits)))


async def kill_servers(pool: Pool) -> None:
    """From outside, as nothing in a box could."""
    for box in (*pool._busy, *pool._idle):
        if pool.backend.name == "docker":
            await asyncio.to_thread(pool.backend._client.api.kill, box._holder._container)  # type: ignore[attr-defined]
        else:
            signal.pidfd_send_signal(box._holder._server, signal.SIGKILL)  # type: ignore[attr-defined]


# ---- what happened


async def test_an_execution_says_what_happened(pool: Pool) -> None:
    program = Program(
        source="import sys, helper\nprint(input(), helper.x)\nprint('e', file=sys.stderr)\nsys.exit(3)",
        files={"helper.py": b"x = open('data/y').read()", "data/y": b"1"},
        stdin=b"in",
    )
    finished = await pool.run(program)
    assert (finished.status, finished.exit_code, finished.stdout, finished.stderr) == ("finished", 3, b"in 1\n", b"e\n")
    assert (await execute(pool, "import os\nos.kill(os.getpid(), 9)")).signal == 9
    assert (await execute(pool, "while True: pass", wall_seconds=0.4)).status == "wall_timeout"
    flood = await execute(pool, "while True: print('x' * 999)", output_bytes=10_000)
    assert (flood.status, len(flood.stdout), flood.stdout_cut, flood.stderr_cut) == (
        "output_limit",
        10_000,
        True,
        False,
    )
    bomb = "held = []\nwhile True: held.append(bytearray(1 << 20))"
    assert (await execute(pool, bomb, memory_bytes=64 << 20)).status == "out_of_memory"
    forks = "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\nos._exit(0)"
    assert (await execute(pool, forks, processes=8)).status == "too_many_processes"
    used = await execute(pool, "x = bytearray(b'1' * (50 << 20))\nfor _ in range(10**6): pass")
    assert used.peak_memory_bytes > 50 << 20
    assert 0 < used.cpu_seconds < 5
    assert (await pool.run(Program(argv=("sh", "-c", "echo $0; exit 4")))).exit_code == 4
    assert (await pool.run(Program(argv=("/no/such/program",)))).exit_code == 127


@pytest.mark.parametrize(
    ("source", "code", "out", "error"),
    [
        ("1 / 0", 1, b"", b"ZeroDivisionError: division by zero"),
        ("x = (", 1, b"", b"SyntaxError: '(' was never closed"),
        ("raise SystemExit('why')", 1, b"", b"why"),
        ("raise SystemExit", 0, b"", b""),
        ("import atexit\natexit.register(print, 'last')\nprint('first')", 0, b"first\nlast\n", b""),
        ("class A:\n    def __del__(self): print('gone')\na = A()", 0, b"gone\n", b""),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(1))).start()",
            0,
            b"1\n",
            b"",
        ),
        ("print(__name__, __file__.endswith('main.py'))", 0, b"__main__ True\n", b""),
        ("import sys\nsys.excepthook = lambda *_: print('mine')\n1 / 0", 1, b"mine\n", b""),
        ("print({'a', 'b', 'c'} == {'c', 'b', 'a'}, hash('x'))", 0, None, b""),
        ("import sys\nsys.stdout.write('no newline')", 0, b"no newline", b""),
    ],
)
async def test_a_source_runs_as_a_main_program_does(
    pool: Pool, source: str, code: int, out: bytes | None, error: bytes
) -> None:
    first, second = await execute(pool, source), await execute(pool, source)
    assert first.exit_code == code
    assert error in first.stderr
    assert b"inside" not in first.stderr
    assert b"<string>" not in first.stderr
    assert out is None or first.stdout == out
    assert first.stdout == second.stdout, "the same program does the same thing twice"


async def test_a_conversation_is_line_by_line_and_ends_with_the_program(pool: Pool) -> None:
    heard: list[bytes] = []

    async def talk(box: Conversation) -> None:
        for word in (b"one", b"x" * 300_000):
            await box.send(word)
            heard.append(await box.receive())
        await box.send(b"stop")
        heard.append(await box.receive())

    source = "for line in iter(input, 'stop'): print(len(line), flush=True)"
    execution = await pool.run(Program(source=source), talk)
    assert heard == [b"3", b"300000", b""]
    assert (execution.status, execution.exit_code) == ("finished", 0)


async def test_a_program_that_does_not_read_cannot_hold_up_its_supervisor(pool: Pool) -> None:
    async def talk(box: Conversation) -> None:
        for _ in range(100):
            await box.send(b"x" * 100_000)

    began = time.monotonic()
    execution = await pool.run(Program(source="import time\ntime.sleep(60)", limits=Limits(wall_seconds=1.0)), talk)
    assert execution.status == "wall_timeout"
    assert time.monotonic() - began < 8


async def test_a_talk_that_gives_up_sending_leaves_the_box_as_it_was(pool: Pool) -> None:
    async def talk(box: Conversation) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(box.send(b"x" * 200_000), timeout=0.3)

    late = "import sys, time\ntime.sleep(0.4)\nprint(set(sys.stdin.read()) == {'x'}, file=sys.stderr)"
    first = await pool.run(Program(source=late), talk)
    assert (first.status, first.stderr) == ("finished", b"True\n")
    box = pool._idle[-1]
    assert (await execute(pool, "print(1)")).stdout == b"1\n"
    assert pool._idle[-1] is box


async def test_programs_that_run_together_start_together_and_pairs_do_not_starve(pool: Pool) -> None:
    async def pair() -> list[Execution]:
        first: asyncio.Queue[bytes] = asyncio.Queue()

        async def ask(box: Conversation) -> None:
            first.put_nowait(await box.receive())

        async def answer(box: Conversation) -> None:
            await box.send(await first.get())
            assert await box.receive() == b"hello"

        return await pool.run_together(
            (Program(source="print('hello')"), ask), (Program(source="print(input())"), answer)
        )

    singles = [pool.run(Program(source="import time\ntime.sleep(0.05)")) for _ in range(8)]
    results = await asyncio.wait_for(asyncio.gather(*(pair() for _ in range(8)), *singles), timeout=60)
    ends = [end for result in results for end in (result if isinstance(result, list) else [result])]
    assert {end.status for end in ends} == {"finished"}


CPP = b"#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n"
NODE = b"process.stdin.on('data', text => console.log(String(text).split(' ').reduce((a, b) => +a + +b)))"


@pytest.mark.parametrize(
    ("language", "command", "argv", "files"),
    [
        ("cpp", "g++", ("sh", "-c", "g++ -o sum sum.cpp && ./sum"), {"sum.cpp": CPP}),
        ("node", "node", ("node", "sum.js"), {"sum.js": NODE}),
    ],
)
async def test_other_languages_run_where_they_are_installed(
    pool: Pool, language: Language, command: str, argv: tuple[str, ...], files: dict[str, bytes]
) -> None:
    limits = Limits(wall_seconds=60.0, cpu_seconds=60.0)
    execution = await pool.run(Program(argv=argv, files=files, stdin=b"2 40", language=language, limits=limits))
    installed = shutil.which(command, path="/usr/local/bin:/usr/bin") is not None
    if execution.status == "sandbox_failure":  # the way out is named
        assert "scripts/build-sandbox-image" in execution.detail or (not installed and command in execution.detail)
    else:
        assert (execution.status, execution.stdout) == ("finished", b"42\n"), execution


async def test_nothing_that_passed_through_a_box_can_be_read_in_it_later(pool: Pool) -> None:
    scan = next(each for each in ATTACKS if each.name == "memory of an earlier run").programs[1]

    async def talk(box: Conversation) -> None:
        for _ in range(50):
            await box.send(f"{REMEMBER} in a conversation".encode())
            assert REMEMBER.encode() in await box.receive()

    loop = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    await pool.run(Program(source=loop, files={f"folder/{REMEMBER}": REMEMBER.encode() * 1000}), talk)
    await pool.run(Program(argv=("sh", "-c", f"echo {REMEMBER}; echo {REMEMBER} >&2")))
    execution = await pool.run(Program(source=scan))
    assert (execution.status, execution.stderr) == ("finished", b"tried\n")


def test_a_name_outside_the_folder_is_refused() -> None:
    for name in ("../x", "/etc/x", "a/../../x", "", "main.py"):
        with pytest.raises(ValueError, match="file"):
            Program(source="1", files={name: b""})


async def test_files_that_do_not_fit_are_ours_to_mend(pool: Pool) -> None:
    execution = await pool.run(Program(source="1", files={"big": bytes(100 << 20)}))
    assert execution.status == "sandbox_failure"
    assert "No space left" in execution.detail
    assert (await execute(pool, "print(1)")).stdout == b"1\n"


# ---- nothing is left


async def test_a_cancelled_run_is_gone_within_a_second_with_its_descendants(pool: Pool) -> None:
    marker = f"sleep {71_000 + os.getpid()}"
    source = f"import os\nos.fork()\nos.setsid() if not os.fork() else None\nos.system('{marker}')"
    run = asyncio.ensure_future(pool.run(Program(source=source)))
    await _until(lambda: _processes(marker) >= 3)
    began = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await _until(lambda: _processes(marker) == 0)
    assert time.monotonic() - began < 1.0
    assert (await execute(pool, "print(1)")).stdout == b"1\n"


@pytest.mark.parametrize("kind", BACKENDS)
async def test_a_closed_pool_leaves_no_process_no_descriptor_and_no_control_group(kind: Kind) -> None:
    warm = open_sandbox(kind)  # what a process loads once
    await execute(warm, "1")
    await warm.close()
    files, groups = _files(), _groups()
    pool = open_sandbox(kind)
    await asyncio.gather(*(execute(pool, "print(1)") for _ in range(12)))
    running = pool.run(Program(source="import time\ntime.sleep(60)"))
    task = asyncio.ensure_future(running)
    await asyncio.sleep(0.3)
    await pool.close(patience_seconds=0.1)
    assert (await task).status == "sandbox_failure"
    await _until(lambda: _groups() == groups)
    await _until(lambda: _files() <= files)
    assert (await execute(pool, "print(1)")).detail == "the pool is closed"


@pytest.mark.parametrize("kind", BACKENDS)
async def test_boxes_die_with_a_supervisor_that_is_killed(kind: Kind) -> None:
    marker = f"sleep {72_000 + os.getpid()}"
    script = (
        "import asyncio, sys\nfrom sandbox.base import Program\nfrom sandbox.shared import open_sandbox\n"
        "async def main():\n    pool = open_sandbox(sys.argv[1])\n"
        "    await pool.run(Program(argv=('sh', '-c', sys.argv[2])))\nasyncio.run(main())"
    )
    argv = [sys.executable, "-c", script, kind, f"trap '' HUP TERM; {marker}"]
    with subprocess.Popen(argv) as supervisor:  # noqa: ASYNC220
        await _until(lambda: _processes(marker, supervisor.pid) > 0, seconds=20)
        supervisor.kill()
    await _until(lambda: _processes(marker) == 0, seconds=3)
    pool = open_sandbox(kind)  # sweeps
    await execute(pool, "1")
    await pool.close()
    if kind == "docker":
        import docker

        left = docker.from_env().api.containers(all=True, filters={"label": "rlvr.sandbox.owner"})
        assert not [each for each in left if f"-{supervisor.pid}-" in each["Labels"]["rlvr.sandbox.owner"]]


async def test_boxes_are_recycled_and_a_doubtful_one_is_thrown_away() -> None:
    pool = Pool(Bubblewrap(), max_boxes=1, runs_per_box=3)
    try:
        uses = [(await execute(pool, "import os\nprint(os.getpid())")).stdout for _ in range(4)]
        assert int(uses[3]) < int(uses[2]), "the fourth run has a new box, where process ids begin anew"
        await execute(pool, "for number in range(30_000): open(str(number), 'w').close()", open_files=64)
        assert not pool._idle, "wiping so much takes longer than a new box"
    finally:
        await pool.close()


# ---- whose fault


async def test_a_run_whose_box_is_killed_from_outside_is_repeated(pool: Pool) -> None:
    run = asyncio.ensure_future(execute(pool, "import time\ntime.sleep(1)\nprint('whole')"))
    await asyncio.sleep(0.1)
    await _until(lambda: bool(pool._busy))
    await asyncio.sleep(0.3)
    await kill_servers(pool)
    assert (await run).stdout == b"whole\n"


@pytest.mark.docker
async def test_a_run_whose_container_is_removed_from_outside_is_repeated() -> None:
    pool = open_sandbox("docker", max_boxes=2)
    run = asyncio.ensure_future(execute(pool, "import time\ntime.sleep(1)\nprint('whole')"))
    await _until(lambda: bool(pool._busy))
    await asyncio.sleep(0.3)
    for box in list(pool._busy):
        api = pool.backend._client.api  # type: ignore[attr-defined]
        await asyncio.to_thread(api.remove_container, box._holder._container, force=True)  # type: ignore[attr-defined]
    assert (await run).stdout == b"whole\n"
    await pool.close()


async def test_without_control_groups_limits_a_process_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cgroups.find", lambda: "nothing is delegated")
    pool = Pool(Bubblewrap())
    lacking = [each.name for each in pool.backend.guarantees() if not each.kept and "nothing is delegated" in each.how]
    assert lacking == ["memory of a run as a whole", "processes of a run", "processor share of a box"]
    assert b"MemoryError" in (await execute(pool, "bytearray(1 << 30)", memory_bytes=256 << 20)).stderr
    forks = (
        "import os\nn = 0\ntry:\n    while True:\n        if not os.fork(): os.kill(os.getpid(), 19)\n        n += 1\n"
    )
    counted = await execute(pool, forks + "except BlockingIOError: print(n)", processes=8)
    assert int(counted.stdout) <= 8
    await pool.close()


async def test_a_conversation_whose_box_is_killed_from_outside_is_ours(pool: Pool) -> None:
    async def talk(box: Conversation) -> None:
        await box.receive()
        await kill_servers(pool)
        await box.receive()

    execution = await pool.run(Program(source="import time\nprint(1, flush=True)\ntime.sleep(60)"), talk)
    assert execution.status == "sandbox_failure"


async def test_a_program_that_ends_box_after_box_while_canaries_live_is_charged_with_it() -> None:
    """No program is known that can, so here an accomplice outside does it."""
    pool = Pool(Bubblewrap(), max_boxes=2)
    run = asyncio.ensure_future(execute(pool, "import time\ntime.sleep(30)"))
    seen: set[object] = set()
    while not run.done():
        await asyncio.sleep(0.5)
        for box in pool._busy & seen:  # a canary is done by then
            signal.pidfd_send_signal(box._holder._server, signal.SIGKILL)  # type: ignore[attr-defined]
        seen = set(pool._busy)
    execution = await run
    await pool.close()
    assert (execution.status, execution.exit_code) == ("finished", None)
    assert f"ended {TRIES} boxes" in execution.detail


async def test_where_no_box_can_be_made_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pool.START_PATIENCE_SECONDS", 0.3)
    backend = Bubblewrap()
    pool = Pool(backend)
    backend._bwrap = "/usr/bin/false"
    execution = await execute(pool, "print(1)")
    assert execution.status == "sandbox_failure"
    assert "no box in 0.3 s" in execution.detail
    await pool.close()


async def _until(true: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def _processes(words: str, but: int = 0) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += words in line and "open_sandbox" not in line and int(path.name) != but
    return found


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _groups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob("*/rlvr-sandbox/*-*") if f"-{os.getpid()}-" in path.name}
