from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Tokenizer

from environments.math_solver import MathSolver
from rlvr.errors import ConfigError
from rlvr.interfaces import Environment, EnvironmentSettings, Verifier, WorkedExample
from rlvr.learner.model import PolicyModel, has_mtp
from rlvr.rollout.renderer import Renderer
from rlvr.starter.build import _examples, build_starter
from rlvr.starter.tokenizer import SPECIAL_TOKENS, train_tokenizer
from rlvr.types import Message, Split, Task


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    environment = MathSolver(MathSolver.Settings())
    examples = islice(environment.worked_examples(0), 500)
    return train_tokenizer(m.content + m.thinking for prompt, answer in examples for m in (*prompt, answer))


def build(cache: Path, seed: int = 0) -> Path:
    environment = MathSolver(MathSolver.Settings())
    return build_starter(
        [environment], seed=seed, cache_folder=cache, progress=lambda line: None, policy_steps=3, mtp_steps=2
    )


def test_marks_and_digits_are_one_token_each(tokenizer: Qwen2Tokenizer) -> None:
    for mark in SPECIAL_TOKENS:
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    assert tokenizer.tokenize("1203") == list("1203")
    assert tokenizer.eos_token == "<|im_end|>"


@given(text=st.text())
@settings(max_examples=50)
def test_every_text_has_tokens_and_comes_back(tokenizer: Qwen2Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_generation_prompt_opens_the_thought_and_continues_to_the_whole(tokenizer: Qwen2Tokenizer) -> None:
    prompt = [{"role": "user", "content": "What is 1+2?"}]
    answer = {"role": "assistant", "thinking": "1+2:3", "content": "\\boxed{3}"}
    opened = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
    assert opened.endswith("<|im_start|>assistant\n<think>")
    assert whole == opened + "1+2:3</think>\\boxed{3}<|im_end|>\n"


def test_the_renderer_reads_back_what_the_starter_writes(tokenizer: Qwen2Tokenizer) -> None:
    renderer = Renderer(tokenizer)
    ids = tokenizer.encode("1+2:3</think>\\boxed{3}<|im_end|>", add_special_tokens=False)
    message = renderer.parse(renderer.start([Message(role="user", content="What is 1+2?")]), ids)
    assert message == Message(role="assistant", thinking="1+2:3", content="\\boxed{3}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cache"))


def test_a_checkpoint_loads_with_its_mtp_layer_and_the_same_tokenizer(built: Path) -> None:
    folder = built
    assert has_mtp(folder)
    model = PolicyModel.load(folder, dtype=torch.float32)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 <= num_parameters <= 4_000_000
    read = AutoTokenizer.from_pretrained(folder)
    text = read.apply_chat_template([{"role": "user", "content": "Solve x-30=84."}], tokenize=False)
    assert len(read.encode(text)) < 20
    assert len(read) <= model.policy.config.vocab_size


def test_a_seed_gives_the_same_bytes_and_another_seed_others(built: Path, tmp_path: Path) -> None:
    first, again, other = built, build(tmp_path / "b"), build(tmp_path / "a", seed=1)
    assert first.name == again.name != other.name
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_second_call_reads_the_cache(built: Path) -> None:
    folder = built
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert build(built.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_two_builders_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: build(tmp_path), range(2)))
    assert [*tmp_path.iterdir()] == [*folders]
    PolicyModel.load(folders.pop(), dtype=torch.float32)


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVR_CACHE", str(tmp_path / "cache"))
    environment = MathSolver(MathSolver.Settings())
    folder = build_starter([environment], seed=0, progress=lambda line: None, policy_steps=1, mtp_steps=1)
    assert folder.parent == tmp_path / "cache"


class Mute(Environment):
    name = "mute"

    def tasks(self, split: Split) -> Iterator[Task]:
        return iter(())

    def verifier(self) -> Verifier:
        raise NotImplementedError


def test_an_environment_without_worked_examples_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mute' has no `worked_examples`.*set policy\.path"):
        build_starter([Mute(EnvironmentSettings())], seed=0, cache_folder=tmp_path, progress=lambda line: None)


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


class Second(Mute):
    name = "second"

    def worked_examples(self, seed: int) -> Iterator[WorkedExample]:
        for number in count():
            prompt = (Message(role="user", content=f"Look up {number} please."),)
            yield WorkedExample(prompt, Message(role="assistant", content=f"I look up {number}."), (TOOL,))


def test_every_environment_that_has_worked_examples_teaches(tmp_path: Path) -> None:
    teachers = [Mute(EnvironmentSettings()), MathSolver(MathSolver.Settings()), Second(EnvironmentSettings())]
    folder = build_starter(
        teachers, seed=0, cache_folder=tmp_path, progress=lambda line: None, policy_steps=1, mtp_steps=1
    )
    assert folder.name.startswith("starter-math_solver+second-0-")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Words of both, and of the tools' description, have become tokens.
    assert {"ĠWhat", "ĠLook", "look"} & set(tokenizer.get_vocab())
    assert len(tokenizer.encode("Look up 7 please.")) < 10
    assert len(tokenizer.encode("What is 12+7? Answer in \\boxed{}.")) < 20
    alone = build_starter(
        teachers[1:2], seed=0, cache_folder=tmp_path, progress=lambda line: None, policy_steps=1, mtp_steps=1
    )
    assert alone.name.startswith("starter-math_solver-0-")


class Empty(Second):
    """Has lessons under other settings."""

    name = "empty"

    def worked_examples(self, seed: int) -> Iterator[WorkedExample]:
        return iter(())


def test_an_environment_without_examples_under_its_settings_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_starter(
        [Empty(EnvironmentSettings()), Second(EnvironmentSettings())],
        seed=0,
        cache_folder=tmp_path,
        progress=lambda line: None,
        policy_steps=1,
        mtp_steps=1,
    )
    assert folder.name.startswith("starter-second-0-")
    (record,) = caplog.records
    assert "learns nothing of environment 'empty'" in record.getMessage()
    with pytest.raises(ConfigError, match=r"'empty' has no `worked_examples` under its settings.*set policy\.path"):
        build_starter([Empty(EnvironmentSettings())], seed=0, cache_folder=tmp_path, progress=lambda line: None)


def test_examples_come_from_each_teacher_in_turn_with_their_tools_told() -> None:
    teachers = [MathSolver(MathSolver.Settings()), Second(EnvironmentSettings())]
    examples = list(islice(_examples(teachers, 0), 4))
    assert [example.prompt[-1].content.split()[0] for example in examples][1::2] == ["Look", "Look"]
    assert examples[1].prompt[0].role == "system"
    assert '{"name": "look_up"' in examples[1].prompt[0].content
    assert [len(example.prompt) for example in examples] == [1, 2, 1, 2]
