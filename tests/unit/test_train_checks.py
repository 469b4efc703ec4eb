"""What is wrong with a policy or too large for the cluster is said before anything starts."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from rlvr import config
from rlvr.errors import ConfigError, RlvrError
from rlvr.report import Reporter
from rlvr.run_folder import FRESH, RunFolder
from rlvr.tasks import make_members
from rlvr.train import RayConnection, _answers, _check_resources, check_pending, check_policy, prepare, train
from tests.fakes import make_task, make_ticket
from tests.tiny import write_checkpoint


def make(**sections: Any) -> config.RunConfig:
    tree: dict[str, Any] = {"run": {"name": "t"}, "environments": [{"name": "math_solver"}]}
    return config.parse(tree | sections)


@pytest.fixture(scope="module")
def without_mtp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), mtp=False)


def test_a_policy_without_mtp_weights_cannot_draft(without_mtp: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"num_draft_tokens = 1 needs MTP weights.*set inference\.num_draft_tokens = 0"
    ):
        check_policy(make(), without_mtp)


def test_a_policy_without_mtp_weights_cannot_train_them(without_mtp: Path) -> None:
    with pytest.raises(ConfigError, match=r"mtp\.train = true needs MTP weights.*set learner\.mtp\.train = false"):
        check_policy(make(inference={"num_draft_tokens": 0}), without_mtp)


def test_a_policy_without_mtp_weights_trains_where_neither_is_asked_for(without_mtp: Path) -> None:
    settings = make(inference={"num_draft_tokens": 0}, learner={"mtp": {"train": False}})
    assert check_policy(settings, without_mtp) > 200


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json.*'starter'"):
        check_policy(make(), tmp_path)


def test_a_limited_thought_needs_a_mark_of_one_token(without_mtp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unmarked"
    folder.mkdir()
    for file in without_mtp.iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b"</think>", b"</thunk>"))
    environments = [{"name": "math_solver", "thinking_tokens": [8, "unlimited"]}]
    settings = make(environments=environments, inference={"num_draft_tokens": 0}, learner={"mtp": {"train": False}})
    with pytest.raises(ConfigError, match=r"</think> is not one token.*thinking_tokens = 'unlimited'"):
        check_policy(settings, folder)


def test_the_same_environment_twice_needs_labels() -> None:
    with pytest.raises(ConfigError, match=r"cannot tell 'math_solver' from .*label of its own, as in label = \"math_"):
        prepare(make(environments=[{"name": "math_solver"}] * 2), Reporter())
    labels = [{"name": "math_solver", "label": label} for label in ("easy", "easy")]
    with pytest.raises(ConfigError, match="cannot tell 'easy'"):
        prepare(make(environments=labels), Reporter())
    labels[1]["label"] = "hard"
    settings = make(environments=[*labels, {"name": "math_solver"}])
    assert [member.name for member in make_members(settings.environments)] == ["easy", "hard", "math_solver"]


def test_a_wrong_setting_of_an_environment_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"math_solver.*levls.*known settings: levels"):
        prepare(make(environments=[{"name": "math_solver", "settings": {"levls": [1]}}]), Reporter())


def test_a_run_that_the_cluster_can_never_place_is_refused_with_its_shares() -> None:
    settings = make(learner={"num_ranks": 4, "gpus_per_rank": 1, "cpus_per_rank": 0})
    with pytest.raises(ConfigError, match=r"needs 4 GPUs \(learner 4 x 1\.0\), and Ray has 2"):
        _check_resources(settings, {"CPU": 8, "GPU": 2})
    _check_resources(settings, {"CPU": 8, "GPU": 4})


def test_a_ray_that_does_not_answer_is_named_at_once() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"  # bound, and nobody listens
        assert not _answers(address)
        with pytest.raises(ConfigError, match=rf"no Ray answers at '{address}'.*ray\.address=local"):
            RayConnection(make(ray={"address": address}), Reporter()).__enter__()
        listener.listen()
        assert _answers(address)


@pytest.mark.parametrize("num_failures", [0, 2, 3])
def test_a_ray_that_does_not_start_in_its_own_time_is_started_again(
    num_failures: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = iter(range(num_failures))

    def init(**_: object) -> None:
        if next(failures, None) is not None:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    connection = RayConnection(make(ray={"address": "local"}), Reporter())
    if num_failures < 3:
        connection.__enter__()
    else:
        with pytest.raises(RlvrError, match=r"did not start, 3 times: The current node timed out.*ray start --head"):
            connection.__enter__()
    assert capsys.readouterr().out.count("once more") == min(2, num_failures)


def test_what_ray_says_of_its_settings_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ValueError("num_cpus")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ValueError, match="num_cpus"):
        RayConnection(make(ray={"address": "local"}), Reporter()).__enter__()


def test_a_resumed_run_without_an_environment_of_its_pending_tasks_is_refused(
    without_mtp: Path, tmp_path: Path
) -> None:
    plain = {"inference": {"num_draft_tokens": 0}, "learner": {"mtp": {"train": False}}}
    settings = make(run={"name": "r", "folder": str(tmp_path)}, policy={"path": str(without_mtp)}, **plain)
    folder = RunFolder(settings)
    members = make_members(settings.environments)
    check_pending(folder, members)  # nothing to go on from

    def save(*environments: str) -> None:
        tasks = [make_task(number, environment=name) for number, name in enumerate(environments)]
        pending = tuple(dataclasses.replace(make_ticket(task.seed), task=task) for task in tasks)
        folder.commit(folder.new_checkpoint(4), dataclasses.replace(FRESH, step=4, pending=pending))

    save("math_solver")
    check_pending(folder, members)
    save("tool_use", "math_solver", "tool_use", "coin")
    folder.close()
    with pytest.raises(ConfigError) as refused:
        train(settings, reporter=Reporter())
    for told in (str(folder.path), "step-000004", "'tool_use' (2 tasks), 'coin' (1 tasks)", "policy.path="):
        assert told in str(refused.value)
