"""One environment under two labels, killed in the middle of an evaluation and resumed with other settings."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rlvr.interfaces import Environment, EnvironmentSettings
from rlvr.ledger import audit
from rlvr.types import Episode, Message, Outcome, Split, Task, Verdict, episode_from_json, judged
from tests.integration.runs import Run, write_config
from tests.tiny import write_checkpoint
from tests.verify_records import read, verify

pytestmark = pytest.mark.slow


class TossSettings(EnvironmentSettings):
    longest: int = 0
    witness: str = ""


class TossVerifier:
    """Correct when what the model wrote has an even number of characters, or is not longer than `longest`."""

    id, version = "toss", "1"

    def __init__(self, settings: TossSettings) -> None:
        self._settings = settings

    def verify(self, task: Task, transcript: Sequence[Message]) -> Verdict:
        if "/held_out/" in task.id and self._settings.witness:
            with Path(self._settings.witness).open("a") as file:
                file.write(f"{task.id}\n")
            time.sleep(0.2)  # an evaluation lasts long enough to be met
        length = len(transcript[-1].thinking + transcript[-1].content)
        right = length % 2 == 0 or length <= self._settings.longest
        outcome: Outcome = "correct" if right else "incorrect"
        return judged(self, outcome, f"{self._settings.longest}", checks={}, started=time.perf_counter())


class Toss(Environment):
    name = "toss"
    Settings = TossSettings
    settings: TossSettings

    def tasks(self, split: Split) -> Iterator[Task]:
        for number in range(1000):
            prompt = (Message(role="user", content=f"{split} {number}"),)
            yield Task(id=f"toss/{split}/{number}", environment=self.name, prompt=prompt, reference={})

    def verifier(self) -> TossVerifier:
        return TossVerifier(self.settings)


def test_episodes_are_told_apart_and_judged_as_they_were_played(tmp_path: Path) -> None:
    config = write_config(tmp_path, write_checkpoint(tmp_path / "policy"))
    witness = tmp_path / "witness"
    table = f'[[environments]]\nname = "{__file__}:Toss"\ncompletion_tokens = 24\nsettings.witness = "{witness}"\n'
    head, _, rest = config.read_text().partition("[[environments]]")
    tables = f'{table}label = "a"\n{table}label = "b"\nweight = 3.0\n'
    config.write_text(f"{head}{tables}[rollout]{rest.partition('[rollout]')[2]}")
    settings = ("eval.every=1", "run.num_steps=4")

    run = Run(config, tmp_path, *settings)
    deadline = time.monotonic() + 240
    # 32 tasks before training, 16 after each of two steps, and a few of the third evaluation.
    while not witness.exists() or len(witness.read_text().splitlines()) < 32 + 16 + 16 + 1:
        assert run.process.poll() is None, run.output()
        assert time.monotonic() < deadline, run.output()
        time.sleep(0.02)
    run.kill()
    assert run.last_step() == 2, "the kill did not come in the evaluation after step 3"

    # The judge of one of the two is another from here on.
    run = Run(config, tmp_path, *settings, "environments.1.settings.longest=1000")
    assert run.wait() == 0, run.output()
    assert "resumed from" in run.output()
    assert audit(run.folder / "ledger.jsonl") == []
    assert [(line["step"], "eval/accuracy" in line) for line in run.metrics()] == [
        (1, True), (2, True), (3, True), (4, False),
    ]  # fmt: skip

    logs = sorted((run.folder / "episodes").iterdir())
    lines = {log.name: log.read_text().splitlines() for log in logs}
    assert [len(lines[f"eval-00{start}.jsonl"]) for start in (0, 1)] == [32 + 16 + 16, 16 + 32]
    episodes: list[Episode] = [episode_from_json(line) for log in lines.values() for line in log]
    assert [key for key, count in Counter(episode.id for episode in episodes).items() if count > 1] == []
    held_out = Counter(episode.task.id for episode in episodes if "/held_out/" in episode.task.id)
    assert set(held_out.values()) == {2, 5}, "the same tasks, at every evaluation"
    assert {episode.task.environment for episode in episodes} == {"a", "b"}
    names = {name for line in run.metrics() for name in line}
    assert {"env/a/reward/mean", "env/b/reward/mean", "env/a/eval/accuracy", "env/b/eval/accuracy"} <= names

    longest = [json.loads((run.folder / "configs" / f"00{n}.json").read_text())["environments"] for n in (0, 1)]
    assert [[each["settings"].get("longest", 0) for each in one] for one in longest] == [[0, 0], [0, 1000]]
    witness.unlink()
    assert verify(run.folder, "--out", tmp_path / "verdicts.jsonl") == 0
    assert [line["as_online"] for line in read(tmp_path / "verdicts.jsonl")] == [True] * len(episodes)
