"""`rlvr verify` while it runs: workers that fall, interrupts, progress, and what it imports."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.verify_records import (
    CODE,
    MATH,
    SQL,
    TOOL_CALLS,
    WRONG,
    odd_record,
    read,
    verify,
    write,
)
from verifiers import workers
from verifiers.scoring import Job
from verifiers.workers import Workers

# ---- workers that fall, and runs that are stopped


@pytest.mark.slow
def test_a_record_that_kills_or_stalls_its_worker_is_invalid_and_the_rest_is_scored(tmp_path: Path, odd: str) -> None:
    answers = ["default"] * 5 + ["die"] + ["default"] * 20 + ["hang", "raise"] + ["default"] * 20
    source = write(tmp_path / "in.jsonl", [odd_record(odd, answer) for answer in answers])
    out = tmp_path / "out.jsonl"
    assert verify(source, "--out", out, "--max-invalid", 3, "--record-seconds", 2) == 0
    got = dict(zip(answers, read(out), strict=True))
    assert [line["outcome"] for line in read(out)].count("correct") == 45
    assert got["die"]["reason"].startswith("its worker died")
    assert got["hang"]["reason"].startswith("its worker took over 2 s")
    assert got["raise"]["reason"] == "the verifier raised RuntimeError('a fault')"


def test_resume_goes_on_after_the_last_whole_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [MATH, "{", WRONG, "", MATH, WRONG]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    verify(source, "--out", out)
    table = capsys.readouterr().out.splitlines()[1].split()[:5]
    whole = [line | {"seconds": 0} for line in read(out)]
    text = out.read_text()
    for length in (0, 5, len(text) // 2, text.index("\n") + 1, len(text) - 1, len(text)):
        out.write_text(text[:length])
        assert verify(source, "--out", out, "--resume") == 1
        assert [line | {"seconds": 0} for line in read(out) if "error" not in line] == [
            line for line in whole if "error" not in line
        ]
        assert len(read(out)) == 5
        assert capsys.readouterr().out.splitlines()[1].split()[:5] == table


def test_resuming_with_other_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = write(tmp_path / "a.jsonl", [MATH, WRONG]), write(tmp_path / "b.jsonl", [MATH, WRONG])
    out = tmp_path / "out.jsonl"
    assert verify(first, "--out", out) == 0
    before = out.read_bytes()
    for inputs in ([other], [other, first], [write(tmp_path / "c.jsonl", [MATH])]):
        assert verify(*inputs, "--out", out, "--resume") != 0
        assert "not record 2 of the input" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert verify(first, other, "--out", out, "--resume") == 0
    assert len(read(out)) == 4


def test_an_interrupt_leaves_whole_lines_and_resume_finishes(tmp_path: Path, odd: str) -> None:
    source = write(tmp_path / "in.jsonl", [odd_record(odd, "slow")] * 100)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rlvr.cli", "verify", source, "--workers", "2", "--out", str(out)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(timeout=10) == 130
    done = read(out)
    assert 0 < len(done) < 100
    assert out.read_bytes().endswith(b"\n")
    assert verify(source, "--out", out, "--resume") == 0
    assert [line["line"] for line in read(out)] == list(range(1, 101))


def test_reading_stays_near_the_first_record_without_a_verdict(
    tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WINDOW", 50)
    read_ahead = ahead = 0

    def jobs() -> Iterator[Job]:
        nonlocal read_ahead
        for number in range(2000):
            read_ahead = number
            answer = "slow" if number % 500 == 0 else "default"
            yield Job("x.jsonl", number + 1, json.dumps(odd_record(odd, answer)).encode())

    with Workers(2) as pool:
        for number, result in enumerate(pool.map(jobs())):
            assert result.key == f"x.jsonl:{number + 1}"
            ahead = max(ahead, read_ahead - number)
    assert number == 1999
    assert ahead < 50 + 3 * workers.MAX_CHUNK


@pytest.mark.slow
def test_a_terminal_sees_progress_and_a_file_does_not(tmp_path: Path, odd: str) -> None:
    source = write(tmp_path / "in.jsonl", [odd_record(odd, "slow")] * 40)

    def shown(*arguments: str) -> str:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "rlvr.cli", "verify", source, "--workers", "1", *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as running:
            os.close(theirs)
            seen = b""
            with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:  # EIO is its end
                while part := terminal.read(4096):
                    seen += part
            assert running.wait(30) == 0
        return seen.decode()

    bar = re.compile(r"\r\[#{1,30} *\] +\d+%  \d+ records, \d+ a second")
    assert len(bar.findall(shown())) > 1
    assert shown("--no-progress") == ""


# ---- light


@pytest.mark.slow
def test_no_training_library_is_imported(tmp_path: Path) -> None:
    lines = [MATH, CODE, SQL, TOOL_CALLS, {"environment": "math_solver"} | MATH]
    source = write(tmp_path / "in.jsonl", lines)
    script = (
        "import sys; from rlvr.cli import main\n"
        f"main(['verify', {source!r}, '--workers', '1'])\n"
        "from verifiers.scoring import Job, Scorer\n"
        f"for line in open({source!r}, 'rb'): Scorer().score(Job('x', 1, line))\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "rlvr.cli", "verify", "--help"]
        assert b"--max-invalid" in subprocess.run(command, capture_output=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of the processor, not of the clock: what else the machine does is not its doing.
    assert min(seconds() for _ in range(3)) < 0.5
