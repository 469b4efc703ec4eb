"""Every mistake that can be known before a run starts is a ConfigError with the value, the rule and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlvr.config import RunConfig, dump, load, parse
from rlvr.errors import ConfigError
from rlvr.types import LossSettings

MINIMAL = '[run]\nname = "test"\n[[environments]]\nname = "coin"\n[[environments]]\nname = "math_solver"\n'


def tree(**sections: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {"run": {"name": "test"}, "environments": [{"name": "coin"}]}
    for section, values in sections.items():
        base[section] = base.get(section, {}) | values
    return base


def message_of(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(tree)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_the_smallest_config_is_accepted() -> None:
    config = parse(tree())
    assert config.rollout.group_size == 8
    assert [budget.tokens for budget in config.environments[0].thinking_tokens] == ["unlimited"]


@pytest.mark.parametrize(
    ("change", "value", "rule", "way_out"),
    [
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1", "at least 2", "set rollout.group_size to 2"),
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p = 0.9", "top_p = 1", "remove top_p"),
        ({"rollout": {"temperature": 0.0}}, "rollout.temperature = 0.0", "above 0", "1.0 is usual"),
        ({"rollout": {"temperature": float("nan")}}, "rollout.temperature = nan", "above 0", "1.0 is usual"),
        (
            {"rollout": {"groups_per_batch": 3, "group_size": 3}, "learner": {"num_ranks": 2}},
            "3 * 3 = 9 episodes",
            "do not divide over learner.num_ranks * learner.updates_per_batch = 2 * 1 = 2",
            "choose groups_per_batch a multiple",
        ),
        (
            {"rollout": {"groups_per_batch": 3, "group_size": 2}, "learner": {"num_ranks": 2, "updates_per_batch": 2}},
            "3 * 2 = 6 episodes",
            "= 2 * 2 = 4",
            "choose groups_per_batch a multiple",
        ),
        (
            {"algorithm": {"importance_min": 1.0}},
            "algorithm.importance_min = 1.0, importance_max = 2.0",
            "must contain 1",
            "0.5 and 2.0 are usual",
        ),
        ({"algorithm": {"importance_max": 0.9}}, "importance_max = 0.9", "must contain 1", "0.5 and 2.0 are usual"),
        (
            {"learner": {"micro_batch_tokens": 511}},
            "learner.micro_batch_tokens = 511 is below inference.max_model_len = 512",
            "must fit one micro-batch",
            "raise the first or lower the second",
        ),
        (
            {"inference": {"max_model_len": 256}},
            "completion_tokens = 256",
            "no room for a prompt in inference.max_model_len = 256",
            "raise the latter",
        ),
    ],
)
def test_contradictions_name_the_value_the_rule_and_the_way_out(
    change: dict[str, dict[str, Any]], value: str, rule: str, way_out: str
) -> None:
    message = message_of(tree(**change))
    assert value in message
    assert rule in message
    assert way_out in message


@pytest.mark.parametrize(
    "change",
    [
        {"rollout": {"group_size": 2}},
        {"rollout": {"temperature": 0.1}},
        {"rollout": {"groups_per_batch": 3, "group_size": 2}, "learner": {"num_ranks": 3, "updates_per_batch": 2}},
        {"algorithm": {"importance_min": 0.99, "importance_max": 1.01}},
        {"learner": {"micro_batch_tokens": 512}},
        {"inference": {"max_model_len": 257}},
    ],
)
def test_the_last_value_within_each_rule_is_accepted(change: dict[str, dict[str, Any]]) -> None:
    parse(tree(**change))


def test_every_environment_of_the_mixture_is_checked_against_the_context() -> None:
    environments = [{"name": "coin"}, {"name": "long", "completion_tokens": 512}]
    assert "environment 'long': completion_tokens = 512" in message_of(tree() | {"environments": environments})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learner": {"learning_rat": 1}}, "learner.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ({"learner": {"mtp": {"top_n": 1}}}, "learner.mtp.top_n: unknown key; did you mean 'top_k'?"),
        ({"rolout": {}}, "rolout: unknown key; did you mean 'rollout'?"),
        ({"ray": {"zzz": 1}}, "ray.zzz: unknown key; known here: address, num_cpus"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(change: dict[str, Any], expected: str) -> None:
    assert expected in message_of(tree(**change))


def test_an_unknown_key_in_a_list_of_tables_is_compared_with_the_keys_of_its_table() -> None:
    message = message_of(tree() | {"environments": [{"name": "coin", "wieght": 2}]})
    assert "environments.0.wieght: unknown key; did you mean 'weight'?" in message


def test_values_out_of_range_name_the_key_the_value_and_the_bound() -> None:
    message = message_of(tree(run={"num_steps": 0}, learner={"zero_stage": 4}))
    lines = message.splitlines()
    assert "run.num_steps = 0: input should be greater than 0" in message
    assert "learner.zero_stage = 4: input should be 0, 1, 2 or 3" in message
    assert len(lines) == 3, "one line a mistake, after the source"


def test_what_is_wrong_within_a_list_is_told_once() -> None:
    message = message_of(tree() | {"environments": [{"name": "coin", "weight": -1}]})
    assert message.splitlines()[1:] == ["  environments.0.weight = -1: input should be greater than 0"]


def test_what_is_missing_is_named() -> None:
    assert "run: required, and not given" in message_of({"environments": [{"name": "coin"}]})
    assert "environments: required, and not given" in message_of({"run": {"name": "x"}})
    assert "environments = []: " in message_of(tree() | {"environments": []})


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_run_name_is_one_plain_folder_name(name: str) -> None:
    assert "run.name = " in message_of(tree(run={"name": name}))


@pytest.mark.parametrize("tokens", [[], ["unlimted"], [-1], "none", [{"tokens": 4, "weight": 0}], [{"token": 4}]])
def test_a_wrong_thinking_budget_is_named(tokens: Any) -> None:
    message = message_of(tree() | {"environments": [{"name": "coin", "thinking_tokens": tokens}]})
    assert "environments.0.thinking_tokens" in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (24, [(24, 1.0)]),
        ("unlimited", [("unlimited", 1.0)]),
        ([0, "unlimited"], [(0, 1.0), ("unlimited", 1.0)]),
        ([{"tokens": 24, "weight": 2}, 8], [(24, 2.0), (8, 1.0)]),
        ({"tokens": 3}, [(3, 1.0)]),
    ],
)
def test_a_thinking_budget_is_a_count_or_unlimited_or_a_weighted_list(written: Any, meant: Any) -> None:
    config = parse(tree() | {"environments": [{"name": "coin", "thinking_tokens": written}]})
    budgets = config.environments[0].thinking_tokens
    assert [(budget.tokens, budget.weight) for budget in budgets] == meant


def test_every_limit_may_be_unlimited() -> None:
    limits = dict.fromkeys(("completion_tokens", "turns", "tool_calls", "seconds"), "unlimited")
    section = parse(tree() | {"environments": [{"name": "coin"} | limits]}).environments[0]
    assert {name: getattr(section, name) for name in limits} == limits


def test_an_environment_has_the_runs_settings_but_for_its_own() -> None:
    own = {"name": "own", "group_size": 4, "temperature": 0.5, "algorithm": {"clip_high": 0.4, "mask_truncated": True}}
    config = parse(
        tree(rollout={"group_size": 16, "temperature": 0.9}, algorithm={"clip_low": 0.1, "clip_high": 0.3})
        | {"environments": [{"name": "coin"}, own]}
    )
    first, second = config.environments
    assert (first.group_size, first.temperature, first.algorithm) == (16, 0.9, config.algorithm)
    assert (second.group_size, second.temperature) == (4, 0.5)
    assert second.algorithm == config.algorithm.model_copy(update={"clip_high": 0.4, "mask_truncated": True})
    assert second.loss == LossSettings(temperature=0.5, clip_low=0.1, clip_high=0.4)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"group_size": 1}, "environment 'coin'.group_size = 1"),
        ({"temperature": 0.0}, "environment 'coin'.temperature = 0.0"),
        ({"algorithm": {"importance_min": 1.5}}, "environment 'coin': algorithm.importance_min = 1.5"),
        ({"answer_tokens": 256}, "answer_tokens = 256 leaves no room for a thought in completion_tokens = 256"),
        ({"tell_budget": "Think {tokens}."}, "it may hold {thinking_tokens}"),
        ({"tell_budget": "Think {thinking_tokens:d}."}, "not a template"),
        ({"algorithm": {"clip_lo": 0.1}}, "environments.0.algorithm.clip_lo: unknown key; did you mean 'clip_low'?"),
        ({"curriculum": {"floor": 0}}, "environments.0.curriculum.floor = 0"),
    ],
)
def test_what_an_environment_sets_for_itself_is_checked_like_the_runs(section: dict[str, Any], message: str) -> None:
    assert message in message_of(tree() | {"environments": [{"name": "coin"} | section]})


def test_a_resolved_config_reads_back_equal_from_its_dump() -> None:
    config = parse(
        tree(
            run={"max_minutes": 2.5, "seed": 7},
            learner={"betas": [0.8, 0.99], "mtp": {"train": False}, "dtype": "bfloat16"},
            inference={"enforce_eager": True, "num_draft_tokens": 3},
        )
        | {
            "environments": [
                {"name": "coin", "thinking_tokens": [0, 32, "unlimited"], "settings": {"num_tasks": 3}, "tool_calls": 0}
            ]
        }
    )
    written = json.loads(dump(config))
    assert parse(written) == config
    assert written["rollout"]["max_staleness"] == 1, "defaults are written out"
    assert [budget["tokens"] for budget in written["environments"][0]["thinking_tokens"]] == [0, 32, "unlimited"]


def test_a_config_cannot_be_changed_once_it_is_made() -> None:
    config = parse(tree())
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_the_run_folder_is_absolute() -> None:
    config = parse(tree(run={"folder": "some/where"}))
    assert config.run_folder == Path.cwd() / "some" / "where" / "test"


def test_a_run_folder_of_a_submitted_ray_job_lies_outside_the_copy_that_ray_deletes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert parse(tree()).run_folder == Path.home() / "runs" / "test"
    assert parse(tree(run={"folder": str(tmp_path)})).run_folder == tmp_path / "test"


# --- files


def test_a_missing_file_is_named_with_one_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*absent\.toml.*configs/quickstart\.toml"):
        load(tmp_path / "absent.toml")


def test_the_file_that_a_missing_file_is_told_to_start_from_exists_and_is_valid() -> None:
    assert isinstance(load(Path(__file__).parents[2] / "configs" / "quickstart.toml"), RunConfig)


def test_a_folder_is_not_a_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"[run\nname = 1", b"\xff\xfe"])
def test_bad_toml_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: "):
        load(path)


def test_an_error_in_a_file_names_the_file(file: Path) -> None:
    file.write_text(MINIMAL + "[rollout]\ngroup_siz = 4\n")
    with pytest.raises(ConfigError, match=r"run\.toml:\n  rollout\.group_siz: unknown key; did you mean 'group_size'"):
        load(file)


# --- overrides


def test_overrides_are_toml_values_and_bare_words_are_strings(file: Path) -> None:
    config = load(
        file,
        [
            "learner.learning_rate=2e-5",
            "learner.mtp.train=false",
            "policy.path=/models/mimo",
            'run.name="quoted"',
            "ray.address=10.0.0.1:6379",
            "learner.betas=[0.5, 0.6]",
        ],
    )
    assert config.learner.learning_rate == 2e-5
    assert config.learner.mtp.train is False
    assert config.policy.path == "/models/mimo"
    assert config.run.name == "quoted"
    assert config.ray.address == "10.0.0.1:6379"
    assert config.learner.betas == (0.5, 0.6)


def test_a_later_override_wins_over_an_earlier_one_and_over_the_file(file: Path) -> None:
    file.write_text(MINIMAL + "[rollout]\ngroup_size = 4\n")
    assert load(file, ["rollout.group_size=6", "rollout.group_size=2"]).rollout.group_size == 2


def test_an_index_reaches_one_member_of_a_list(file: Path) -> None:
    config = load(file, ["environments.1.weight=3", "environments.1.settings.level=2"])
    assert [section.weight for section in config.environments] == [1.0, 3.0]
    assert config.environments[1].settings == {"level": 2}


@pytest.mark.parametrize("key", ["environments.weight", "environments.2.weight", "environments.-1.weight"])
def test_a_list_without_a_good_index_says_how_to_write_one(file: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"environments is a list of 2; write its index, as in environments\.0"):
        load(file, [f"{key}=3"])


@pytest.mark.parametrize("override", ["learner.learning_rate", "=3", "learner.=3", ".x=1"])
def test_an_override_of_another_form_shows_the_form(file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form section\.key=value"):
        load(file, [override])


def test_an_override_cannot_go_below_a_value(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"'run\.name\.x=1': run\.name is a value, not a table"):
        load(file, ["run.name.x=1"])


def test_an_override_of_the_wrong_type_names_key_and_value(file: Path) -> None:
    with pytest.raises(ConfigError, match=r'run\.num_steps = "many": input should be a valid integer'):
        load(file, ["run.num_steps=many"])


def test_overrides_are_checked_like_the_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.group_size = 1"):
        load(file, ["rollout.group_size=1"])
    with pytest.raises(ConfigError, match=r"rollout\.group_sizes: unknown key"):
        load(file, ["rollout.group_sizes=4"])


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_config_that_comes_along_is_valid_and_begins_with_what_it_needs(path: Path) -> None:
    assert load(path).run.name == path.stem
    assert path.read_text().startswith("# Hardware: ")
