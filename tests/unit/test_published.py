"""A MiMo as it is published trains as the Qwen2 with an MTP layer that it is; a Qwen3.5 as its text model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlvr.errors import ConfigError
from rlvr.learner.model import PolicyModel
from rlvr.published import readable
from rlvr.tokenizer import load_tokenizer
from tests.tiny import add_vision, write_checkpoint, write_qwen35


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLVR_CACHE", str(tmp_path / "cache"))
    return write_checkpoint(tmp_path / "plain")


def publish(plain: Path, **changes: Any) -> Path:
    """The checkpoint as its authors would have it on a hub."""
    published = plain.parent / "published"
    published.mkdir()
    for file in plain.iterdir():
        (published / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text()) | {
        "model_type": "mimo", "attention_bias": True, "use_mrope": False, **changes,
        "auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig", "AutoModel": "modeling_mimo.MiMoModel"},
    }  # fmt: skip
    (published / "config.json").write_text(json.dumps(config))
    for name in ("configuration_mimo.py", "modeling_mimo.py"):
        (published / name).write_text("raise RuntimeError('code from a checkpoint was run')")
    return published


def test_a_published_mimo_loads_layers_and_all(plain: Path) -> None:
    folder = readable(publish(plain))
    policy, expected = (PolicyModel.load(each, dtype=torch.float32) for each in (folder, plain))
    assert policy.mtp is not None
    named = dict(policy.named_weights())
    assert named.keys() == dict(expected.named_weights()).keys()
    for name, weight in expected.named_weights():
        assert torch.equal(named[name], weight)
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(plain).get_vocab()
    # vLLM goes by these three; with the last it would ask to be allowed to run code.
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"], "auto_map" in config) == (
        "qwen2", ["MiMoForCausalLM"], False,
    )  # fmt: skip
    assert not list(folder.glob("*.py"))


def test_the_folder_is_made_once_and_anew_when_the_checkpoint_is_another(plain: Path) -> None:
    published = publish(plain)
    first = readable(published)
    assert readable(published) == first
    (published / "config.json").write_text((published / "config.json").read_text().replace("false", "true", 1))
    assert readable(published) != first
    assert len(list(first.parent.iterdir())) == 2


def test_any_other_checkpoint_is_read_where_it_lies(plain: Path, tmp_path: Path) -> None:
    assert readable(plain) == plain
    assert readable(tmp_path / "missing") == tmp_path / "missing"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_nextn_predict_layers": 3}, "num_nextn_predict_layers = 3 in its config.json; of its kind rlvr trains"),
        ({"attention_bias": False}, "attention_bias = false .* those with true"),
        ({"use_sliding_window": True}, "use_sliding_window = true .* those with false"),
    ],
)
def test_a_mimo_of_another_kind_is_refused_by_what_is_different(
    changes: dict[str, Any], told: str, plain: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        readable(publish(plain, **changes))


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Qwen3.5 with its vision tower, and the text model that it was made from beside it."""
    monkeypatch.setenv("RLVR_CACHE", str(tmp_path / "cache"))
    return add_vision(write_qwen35(tmp_path / "text", hybrid=True), tmp_path / "published")


def test_a_published_qwen35_loads_as_its_text_model_layers_and_all(whole: Path) -> None:
    folder = readable(whole)
    assert readable(whole) == folder
    policy, expected = (PolicyModel.load(each, dtype=torch.float32) for each in (folder, whole.parent / "text"))
    named = dict(policy.named_weights())
    assert named.keys() == dict(expected.named_weights()).keys()
    for name, weight in expected.named_weights():
        assert torch.equal(named[name], weight), name
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(whole).get_vocab()
    written = [name for file in folder.glob("*.safetensors") for name in load_file(file)]
    assert sorted(written) == sorted(named)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["mtp_num_hidden_layers"]) == (
        "qwen3_5_text", ["Qwen3_5ForCausalLM"], 1,
    )  # fmt: skip


def test_a_copy_that_breaks_off_leaves_nothing_behind(whole: Path) -> None:
    broken = whole / "model-00002-of-00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(SafetensorError):
        readable(whole)
    assert list((whole.parent / "cache").iterdir()) == []
