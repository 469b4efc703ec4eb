"""`rlvr verify`: every line is scored or named, in order, with the verdict that training gave."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rlvr import types
from rlvr.types import Completion, Episode, Message, Reply, Task, Turn, Verdict
from tests.verify_records import (
    CODE,
    MATH,
    NO_REFERENCE,
    PROGRAM,
    SQL,
    TOOL_CALLS,
    WRONG,
    odd_record,
    read,
    verify,
    write,
)
from verifiers import records
from verifiers.records import parse, split_thought

# ---- plain records


def test_plain_records_are_scored_in_order_and_pass_id_and_metadata_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [MATH | {"id": "a", "metadata": {"k": [1]}}, "", WRONG, CODE, PROGRAM | {"id": 7}]
    source = write(tmp_path / "in.jsonl", lines)
    out = tmp_path / "out.jsonl"
    assert verify(source, "--out", out) == 0
    got = read(out)
    assert [line["outcome"] for line in got] == ["correct", "incorrect", "correct", "correct"]
    assert [line["reward"] for line in got] == [1.0, -1.0, 1.0, 1.0]
    assert [(line.get("id"), line["line"]) for line in got] == [("a", 1), (None, 3), (None, 4), (7, 5)]
    assert got[0]["metadata"] == {"k": [1]}
    assert {"verifier", "version", "reason", "checks", "seconds"} <= set(got[0])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["verifier", "records", "correct", "incorrect", "invalid", "median", "99", "%"]
    assert [line.split()[:5] for line in printed[1:4]] == [
        ["code", "2", "2", "0", "0"],
        ["math", "2", "1", "1", "0"],
        ["all", "4", "3", "1", "0"],
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"verifier": "math"', "line: no JSON"),
        ("[1]", "line: no JSON object"),
        ("\xff", "line: no JSON"),
        ("[" * 100_000, "line: no JSON"),
        ({"completion": "x", "reference": "4"}, "verifier: missing"),
        (
            MATH | {"verifier": "mth"},
            "verifier: 'mth' is unknown; known are code, math, sql, sql_postgresql, tool_calls",
        ),
        (MATH | {"verifier": 3}, "verifier: not a text"),
        ({"verifier": "math", "reference": "4"}, "completion: missing"),
        ({"verifier": "math", "completion": "4"}, "reference: missing"),
        (CODE | {"reference": "f"}, "reference: not a JSON object"),
        (MATH | {"completion": 4}, "completion: neither a text nor a list of messages"),
        (MATH | {"completion": [4]}, "completion.0: not a message"),
        (MATH | {"completion": [{"role": [], "content": "4"}]}, "completion.0.role: [] is no role"),
        (MATH | {"completion": [{"role": "assistant", "content": [4]}]}, "completion.0.content: not a text"),
        (MATH | {"completion": [{"role": "user", "content": "4"}]}, "completion: no message of the assistant"),
        (MATH | {"id": []}, "id: neither a text nor a whole number"),
        ({"environment": "nowhere", "completion": "4", "reference": {}}, "environment: no environment named 'nowhere'"),
        ({"task": {}, "turns": []}, "id: Field required"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_the_rest_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: Any, complaint: str
) -> None:
    path = tmp_path / "in.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(json.dumps(MATH).encode() + b"\n" + text.encode("latin-1") + b"\n" + json.dumps(MATH).encode())
    out = tmp_path / "out.jsonl"
    assert verify(path, "--out", out) == 1
    captured = capsys.readouterr()
    assert f"{path}:2: {complaint}" in captured.err
    assert "1 lines that could not be read" in captured.err
    first, error, last = read(out)
    assert first["outcome"] == last["outcome"] == "correct"
    assert (error["line"], error["error"][: len(complaint)]) == (2, complaint)


def test_messages_in_the_form_of_openai_are_read() -> None:
    parts = [{"type": "text", "text": "\\boxed{4}"}]
    conversation = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": parts, "reasoning_content": "hm"},
    ]
    record = parse(json.dumps({"verifier": "math", "messages": conversation, "reference": "4"}).encode())
    assert record.transcript[-1] == Message(role="assistant", content="\\boxed{4}", thinking="hm")
    assert [message.role for message in record.task.prompt] == ["system", "user"]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    record = parse(json.dumps({"verifier": "tool_calls", "completion": said, "reference": {}}).encode())
    assert record.transcript[-1].content == '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def test_messages_beside_a_completion_are_its_prompt() -> None:
    shots = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "\\boxed{4}"}]
    for field in ("messages", "prompt"):
        record = parse(json.dumps(MATH | {field: shots, "completion": "\\boxed{5}"}).encode())
        assert [message.content for message in record.task.prompt] == ["2+2?", "\\boxed{4}"]
        assert record.transcript[2:] == (Message(role="assistant", content="\\boxed{5}"),)
    with pytest.raises(records.RecordError, match="completion: missing"):
        parse(json.dumps({"verifier": "math", "reference": "4", "prompt": shots}).encode())


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("4", "", "4"),
        ("<think>a</think>4", "a", "4"),
        ("a</think>4", "a", "4"),
        ("<think>a", "a", ""),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_a_thought_is_set_apart_as_it_is_online(text: str, thought: str, answer: str) -> None:
    assert split_thought(text) == (thought, answer)


# ---- files


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: zstandard.compress(data)])
def test_compressed_files_are_told_by_their_content(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "in.jsonl"
    data = json.dumps(MATH).encode() + b"\n"
    path.write_bytes(pack(data) + pack(data * 2))  # several members, as an appending writer leaves them
    assert verify(path, "--out", tmp_path / "out.jsonl") == 0
    assert [line["line"] for line in read(tmp_path / "out.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstandard.compress(data)])
def test_a_damaged_file_is_named_and_the_next_one_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: Any
) -> None:
    lines = b"".join(json.dumps(MATH | {"id": os.urandom(9).hex()}).encode() + b"\n" for _ in range(2000))
    packed = bytearray(pack(lines))
    packed[len(packed) // 2 : len(packed) // 2 + 50] = bytes(50)
    (tmp_path / "a.jsonl").write_bytes(packed)
    write(tmp_path / "b.jsonl", [MATH])
    assert verify(tmp_path, "--out", tmp_path / "out.json") == 1
    assert f"{tmp_path / 'a.jsonl'}:" in capsys.readouterr().err
    assert read(tmp_path / "out.json")[-1]["file"] == str(tmp_path / "b.jsonl")


def test_standard_input_and_output(tmp_path: Path) -> None:
    text = json.dumps(MATH) + "\n"
    command = [sys.executable, "-m", "rlvr.cli", "verify", "-", "--out", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outcome"] == "correct"
    assert "records" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "no such file"),
        (["."], "no file in it ends in .jsonl"),
        (["in.json", "--resume"], "name it with --out"),
        (["in.json", "--out", "in.json"], "also read from"),
        (["in.json", "--diff", "in.json"], "no line of `rlvr verify --out`"),
        (["in.json", "--diff", "nowhere"], "No such file"),
        (["in.json", "--explain", "77"], "none of 1 records"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.json", [MATH])
    assert verify(*arguments) == 1
    assert message in capsys.readouterr().err
    assert read(tmp_path / "in.json") == [MATH]


def test_a_line_longer_than_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    source = write(tmp_path / "in.jsonl", [MATH, MATH | {"prompt": "x" * 5000}, MATH])
    assert verify(source, "--out", tmp_path / "out.jsonl") == 1
    assert ["error" in line for line in read(tmp_path / "out.jsonl")] == [False, True, False]


# ---- episodes


def episode(number: int, *answers: str, verdict: Verdict | None = None, stop: str = "answered") -> Episode:
    task = Task(id="odd/train/0", environment="odd", prompt=(Message(role="user", content="q"),), reference={})
    completion = Completion(token_ids=(), logprobs=(), loss_mask=(), finish_reason="stop", weight_spans=())
    turns = []
    for index, answer in enumerate(answers):
        last = index == len(answers) - 1
        # A final reply's messages came after the verdict's transcript had ended.
        reply = Reply(messages=(Message(role="tool", content="r"),), done=last)
        message = Message(role="assistant", content=answer)
        turns.append(Turn(prompt_ids=(), completion=completion, message=message, reply=reply))
    seen = 2 * len(answers)
    verdict = verdict or Verdict(
        outcome="correct",
        reward=1.0,
        reason=f"{seen} messages",
        checks={"last": True, "length": True},
        verifier="odd",
        version="1",
    )
    return Episode(id=f"e{number}", task=task, turns=tuple(turns), stop=stop, verdict=verdict)  # type: ignore[arg-type]


@pytest.fixture
def run_folder(tmp_path: Path, odd: str) -> Path:
    broke_off = Verdict(
        outcome="invalid", reward=None, reason="step: it fell", checks={}, verifier="rlvr.rollout.play", version="1"
    )
    episodes = [
        episode(0, "yes"),
        episode(1, "no", "yes"),
        episode(2, "yes", verdict=broke_off, stop="error"),
        episode(3, "changed"),
    ]
    folder = tmp_path / "runs" / "x"
    (folder / "episodes").mkdir(parents=True)
    config = {"environments": [{"name": "other"}, {"name": odd, "settings": {"wanted": "yes"}}]}
    config["environments"][0] = {"name": "math_solver", "settings": {}}
    (folder / "config.json").write_text(json.dumps(config))
    write(folder / "episodes" / "train-000.jsonl", [types.to_json_line(each) for each in episodes])
    return folder


def test_a_runs_episodes_have_the_verdict_that_they_had_online(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (run_folder, run_folder / "episodes", run_folder / "episodes" / "train-000.jsonl"):
        assert verify(given, "--out", tmp_path / "out.jsonl", "--max-invalid", 1) == 0
    got = read(tmp_path / "out.jsonl")
    assert [line["id"] for line in got] == ["e0", "e1", "e2", "e3"]
    assert [line["outcome"] for line in got] == ["correct", "correct", "invalid", "incorrect"]
    assert [line["as_online"] for line in got] == [True, True, True, False]
    printed = capsys.readouterr().out
    assert "as judged online: 3 of 4" in printed
    assert "id e3: now incorrect" in printed


def test_episodes_are_judged_by_the_config_of_their_own_start(run_folder: Path, odd: str, tmp_path: Path) -> None:
    log = run_folder / "episodes" / "train-000.jsonl"
    line = log.read_text().splitlines()[3]  # "changed" was right online

    def config(wanted: str) -> str:
        return json.dumps({"environments": [{"name": odd, "settings": {"wanted": wanted}}]})

    (run_folder / "configs").mkdir()
    (run_folder / "configs" / "000.json").write_text(config("changed"))
    write(log, [line])
    write(log.with_name("eval-001.jsonl"), [line])  # a start without a config of its own has the run's: "yes"
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "config.json").write_text(config("changed"))  # as `rlvr eval` leaves it
    write(tmp_path / "eval" / "episodes.jsonl", [line])
    assert verify(run_folder, tmp_path / "eval", "--out", tmp_path / "out.jsonl") == 0
    got = {Path(each["file"]).name: each["as_online"] for each in read(tmp_path / "out.jsonl")}
    assert got == {"train-000.jsonl": True, "eval-001.jsonl": False, "episodes.jsonl": True}


def test_episodes_of_one_environment_under_two_labels_are_judged_by_their_own_settings(
    run_folder: Path, odd: str, tmp_path: Path
) -> None:
    log = run_folder / "episodes" / "train-000.jsonl"
    line = log.read_text().splitlines()[3]  # "changed" was right online
    sections = [
        {"name": odd, "label": "one", "settings": {"wanted": "changed"}},
        {"name": odd, "label": "two", "settings": {}},
        {"name": odd, "label": None, "settings": {"wanted": "changed"}},
    ]
    (run_folder / "config.json").write_text(json.dumps({"environments": sections}))
    write(log, [line.replace('"environment":"odd"', f'"environment":"{name}"') for name in ("one", "two", "odd")])
    assert verify(run_folder, "--out", tmp_path / "out.jsonl") == 0
    assert [each["as_online"] for each in read(tmp_path / "out.jsonl")] == [True, False, True]


def test_the_gold_answers_of_an_environment_are_scored(run_folder: Path) -> None:
    assert verify(run_folder, "--gold") == 0


# ---- exit codes, differences, gold, audit, explain


@pytest.mark.parametrize(
    ("limit", "code"), [("0", 1), ("1", 1), ("2", 0), ("49%", 1), ("50%", 0), ("100%", 0), ("0%", 1)]
)
def test_more_invalid_verdicts_than_allowed_are_exit_code_1(tmp_path: Path, limit: str, code: int) -> None:
    source = write(tmp_path / "in.jsonl", [MATH, NO_REFERENCE, NO_REFERENCE, MATH])
    assert verify(source, "--max-invalid", limit) == code


def test_diff_lists_the_flips_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old_lines = [MATH | {"id": str(i)} for i in range(30)] + [MATH | {"id": "twice"}, WRONG | {"id": "twice"}]
    new_lines = [line | {"completion": "\\boxed{6}"} if i < 12 else line for i, line in enumerate(old_lines)]
    old, new = write(tmp_path / "old.jsonl", old_lines), write(tmp_path / "new.jsonl", [*new_lines[:-1], MATH])
    assert verify(old, "--out", tmp_path / "before.jsonl") == 0
    capsys.readouterr()
    assert verify(old, "--diff", tmp_path / "before.jsonl") == 0
    assert capsys.readouterr().out.endswith("flipped: 0\n")
    assert verify(new, "--diff", tmp_path / "before.jsonl") == 0
    printed = capsys.readouterr().out
    assert "flipped: 12\n" in printed
    assert "correct -> incorrect  was: " in printed
    assert "id 0, id 1, id 2" in printed
    assert printed.endswith("without a counterpart: 1 now, 1 before\n")


def test_gold_scores_the_references_and_names_those_that_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = CODE | {"reference": CODE["reference"] | {"solution": "def f(x): return x + 1"}}  # type: ignore[operator]
    assert verify(write(tmp_path / "good.jsonl", [good, {"verifier": "math", "reference": "1/2"}]), "--gold") == 0
    assert verify(write(tmp_path / "bad.jsonl", [CODE, PROGRAM]), "--gold", "--max-invalid", 9) == 1
    errors = capsys.readouterr().err
    assert "bad.jsonl:1: gold is incorrect" in errors
    assert "bad.jsonl:2: gold is invalid: no gold answer: the reference has no 'solution'" in errors
    assert "--gold failed on 2" in errors


def test_audit_fails_on_a_verdict_that_changes(
    tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("verifiers.session.AUDIT_BLOCK", 7)
    source = write(tmp_path / "in.jsonl", [MATH, WRONG] * 10)
    assert verify(source, "--audit", "--out", tmp_path / "out.jsonl") == 0
    assert [line["line"] for line in read(tmp_path / "out.jsonl")] == list(range(1, 21))
    flaky = write(tmp_path / "flaky.jsonl", [odd_record(odd, "flaky")] * 20)
    assert verify(flaky, "--audit") == 1
    assert "changed from" in capsys.readouterr().err


def test_explain_prints_the_way_to_one_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thought = MATH | {"id": "b", "completion": "<think>hm</think>\\boxed{5}"}
    source = write(tmp_path / "in.jsonl", [CODE, thought])
    assert verify(source, "--explain", "b") == 0
    printed = capsys.readouterr().out
    for part in (
        ":2  id b",
        "judged by math",
        "not judged: 2 characters",
        "\\boxed{5}",
        "decided by: equal",
        "reward -1",
    ):
        assert part in printed
    assert "the reference is read as: 4" in printed
    assert verify(source, "--explain") == 0
    assert "def f(x): return x + 1" in capsys.readouterr().out
    source = write(tmp_path / "more.jsonl", [SQL, TOOL_CALLS])
    for line, shown in (
        (1, "extracted query:\n    SELECT a FROM t\n"),
        (2, "read: no call\njudged by: the reference's"),
    ):
        assert verify(source, "--explain", line) == 0
        assert shown in capsys.readouterr().out


def test_an_environment_without_a_verifier_is_invalid_and_named(tmp_path: Path, odd: str) -> None:
    file = Path(odd.partition(":")[0])
    file.write_text(file.read_text().replace("return Judge(self.settings.wanted)", "raise RuntimeError('none here')"))
    source = write(tmp_path / "in.jsonl", [odd_record(odd, "yes"), MATH])
    out = tmp_path / "out.jsonl"
    assert verify(source, "--out", out) == 1
    assert [line["outcome"] for line in read(out)] == ["invalid", "correct"]
    assert "none here" in read(out)[0]["reason"]
    assert verify(source, "--explain", 1) == 0
