"""The learner under every ZeRO stage against plain torch; each case in processes of its own: DeepSpeed is global."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlvr import config
from rlvr.algorithms.loss import policy_loss
from rlvr.batching import pack, split_updates
from rlvr.config import RunConfig
from rlvr.errors import CheckpointError, ConfigError
from rlvr.learner.attention import IMPLEMENTATION
from rlvr.learner.checkpoint import load_state
from rlvr.learner.gradients import clip_apart
from rlvr.learner.learner import Learner
from rlvr.learner.model import PolicyModel, companions
from rlvr.learner.mtp import MtpLayer
from rlvr.learner.publisher import NcclPublisher
from rlvr.types import LossSettings, Sample, TrainBatch
from rlvr.weights import unpack

LARGE = 100.0
TEMPERATURE = 0.8
VOCABULARY = 96
PROBE = [5, 17, 80, 3, 3, 41]
Result = dict[str, Any]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tied Qwen2 with an MTP layer; its matrices are large enough for ZeRO-3 to partition them."""
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, attn_implementation=IMPLEMENTATION,
    )  # fmt: skip
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("policy")
    (source / "tokenizer.json").write_text("{}")
    PolicyModel(Qwen2ForCausalLM(shape), MtpLayer(shape)).save(folder, companions=companions(source))
    return folder


def run_config(**learner: Any) -> RunConfig:
    mtp = {"learning_rate": 3e-3, "max_grad_norm": 0.05, "top_k": 8} | learner.pop("mtp", {})
    settings = {"learning_rate": 1e-3, "max_grad_norm": 0.1, "warmup_steps": 3, "weight_decay": 0.01, "mtp": mtp}
    tree = {
        "run": {"name": "test", "seed": 3},
        "environments": [{"name": "none", "completion_tokens": 32}],
        "inference": {"max_model_len": 64},
        "learner": settings | {"micro_batch_tokens": 64} | learner,
    }
    return config.parse(tree)


def batches(num_ranks: int, step: int, scale: float = 1.0) -> list[TrainBatch]:
    """Seven uneven samples, their advantages times `scale`; every other step in two updates."""
    generator = random.Random(step)
    samples = []
    for _ in range(7):
        length, prompt = generator.randint(8, 40), generator.randint(1, 6)
        mask = [int(i >= prompt and generator.random() < 0.9) for i in range(length)]
        advantage = scale * generator.choice([1.0, -0.5])
        samples.append(
            Sample(
                token_ids=tuple(generator.randrange(VOCABULARY) for _ in mask),
                loss_mask=tuple(mask),
                behaviour_logprobs=tuple(-4.6 + generator.gauss(0, 0.5) for _ in mask),
                advantages=tuple(advantage * m for m in mask),
                oldest_version=0,
                loss=LossSettings(temperature=TEMPERATURE),
            )
        )
    return [pack(part, num_ranks=num_ranks, micro_batch_tokens=64) for part in split_updates(samples, 1 + step % 2)]


def train(learner: Learner, steps: range, scale: float = 1.0) -> list[dict[str, float]]:
    metrics = []
    for step in steps:
        updates = batches(learner.world_size, step, scale)
        metrics.append(learner.step([(batch.shards[learner.rank], batch.num_loss_tokens) for batch in updates]))
    return metrics


def snapshot(learner: Learner) -> dict[str, np.ndarray[Any, Any]]:
    packed = learner.weights(7)
    assert (packed is None) == (learner.rank != 0)
    if packed is None:
        return {}
    return {name: as_float32(tensor) for name, tensor in unpack(packed.manifest, torch.from_numpy(packed.buffer))}


def pieces(learner: Learner) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as a rank puts them together to send them to another GPU; on every rank."""
    named, partitioned = list(learner.model.named_weights()), learner.config.learner.zero_stage == 3
    publisher = NcclPublisher(named, lambda: iter(()), rank=learner.rank, partitioned=partitioned)
    found = (torch.cat(publisher._pieces([parameter])).view(parameter.dtype) for _, parameter in named)
    return {name: as_float32(flat) for (name, _), flat in zip(named, found, strict=True)}


def as_float32(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Exact: bfloat16 is a prefix of float32."""
    return tensor.float().numpy()


def run_steps(learner: Learner, folder: Path, scale: float = 1.0) -> Result:
    before = snapshot(learner)
    metrics = train(learner, range(3), scale)
    return {
        "metrics": metrics, "before": before, "weights": snapshot(learner), "probe": learner.logprobs(PROBE),
        "pieces": pieces(learner),
    }  # fmt: skip


def run_large_steps(learner: Learner, folder: Path) -> Result:
    return run_steps(learner, folder, LARGE)


def run_steps_sent_twice(learner: Learner, folder: Path) -> Result:
    """Before each optimizer step the version before it is sent again, and the probe scored."""
    before, metrics, resent = snapshot(learner), [], []
    for step in range(3):
        updates = batches(learner.world_size, step)
        learner.begin([(batch.shards[learner.rank], batch.num_loss_tokens) for batch in updates])
        resent.append(snapshot(learner))
        learner.send()
        learner.logprobs(PROBE)
        metrics.append(learner.finish())
    return {"metrics": metrics, "before": before, "weights": snapshot(learner), "resent": resent}


def run_resume(learner: Learner, folder: Path) -> Result:
    train(learner, range(2))
    learner.save(folder / "checkpoint")
    straight = train(learner, range(2, 4))
    weights = snapshot(learner)
    learner.load(folder / "checkpoint")
    again = train(learner, range(2, 4))
    return {"straight": straight, "again": again, "weights": weights, "weights_again": snapshot(learner)}


def run_save(learner: Learner, folder: Path) -> Result:
    train(learner, range(2))
    learner.save(folder / "checkpoint")
    learner.export(folder / "export")
    train(learner, range(2, 3))
    return {"weights": snapshot(learner)}


def run_load(learner: Learner, folder: Path) -> Result:
    learner.load(folder / "checkpoint")
    loaded = {"loaded": snapshot(learner)}
    train(learner, range(2, 3))
    return loaded | {"weights": snapshot(learner)}


def _rank_main(script: Callable[[Learner, Path], Result], folder: Path, arguments: dict[str, Any]) -> None:
    path = folder / f"result-{arguments['rank']}"
    try:
        learner = Learner(**arguments)
        result: Any = script(learner, folder)
        learner.close()
    except Exception as error:
        result = error
    path.write_bytes(pickle.dumps(result))


def play(
    script: Callable[[Learner, Path], Result], policy: Path, folder: Path, settings: RunConfig, num_ranks: int = 1
) -> list[Result]:
    """Run `script` on every rank, each in a new process; its results by rank. Raises what rank 0 raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # They fork from a process that has imported everything and run nothing: imports are most of a case's time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "transformers.models.qwen2.modeling_qwen2", __name__])
    processes = []
    for rank in range(num_ranks):
        arguments = {
            "config": settings, "model_folder": str(policy), "rank": rank, "world_size": num_ranks,
            "master_addr": "127.0.0.1", "master_port": port,
        }  # fmt: skip
        processes.append(context.Process(target=_rank_main, args=(script, folder, arguments)))
        processes[-1].start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    results = [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(num_ranks)]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.fixture(scope="session")
def reference(policy_folder: Path) -> Result:
    """Of `run_steps` with `run_config`: every gradient is clipped."""
    result = in_plain_torch(policy_folder, policy_limit=0.1, mtp_limit=0.05)
    assert all(each["grad_norm/policy"] > 0.1 and each["grad_norm/mtp"] > 0.05 for each in result["metrics"])
    return result


def in_plain_torch(policy_folder: Path, *, policy_limit: float, mtp_limit: float, scale: float = 1.0) -> Result:
    """The same three steps in plain torch: float32, AdamW, `clip_grad_norm_` for each group."""
    settings = run_config()
    learner, algorithm, temperature = settings.learner, settings.algorithm, TEMPERATURE
    model = PolicyModel.load(policy_folder, dtype=torch.float32)
    assert model.mtp is not None
    groups = [(model.policy, 1e-3, policy_limit), (model.mtp, 3e-3, mtp_limit)]
    optimizer = torch.optim.AdamW(
        [{"params": list(module.parameters()), "lr": rate} for module, rate, _ in groups],
        betas=learner.betas,
        weight_decay=learner.weight_decay,
    )
    limits = {name: getattr(algorithm, name) for name in ("clip_low", "clip_high", "importance_min", "importance_max")}
    metrics, num_updates = [], 0
    for step in range(3):
        updates = batches(1, step, scale)
        with torch.no_grad():
            proximal = [[model(batch, temperature).logprobs for batch in update.shards[0]] for update in updates]
        norms = []
        loss_sum = masked = mtp_loss = mtp_count = 0.0
        for update, old in zip(updates, proximal, strict=True):
            optimizer.zero_grad()
            for batch, old_logprobs in zip(update.shards[0], old, strict=True):
                output = model(batch, temperature, mtp_top_k=8)
                loss, sums = policy_loss(
                    output.logprobs, old_logprobs, batch.behaviour_logprobs, batch.advantages, batch.loss_mask,
                    **limits, num_loss_tokens=update.num_loss_tokens,
                )  # fmt: skip
                (loss + output.mtp_loss / update.num_loss_tokens).backward()
                loss_sum += loss.item() * update.num_loss_tokens
                masked += sums["importance_masked"].item()
                mtp_loss += output.mtp_loss.item()
                mtp_count += output.mtp_count.item()
            norms.append([torch.nn.utils.clip_grad_norm_(m.parameters(), limit).item() for m, _, limit in groups])
            num_updates += 1
            for group, (_, rate, _) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate * min(1.0, num_updates / 3)
            optimizer.step()
        tokens = sum(update.num_loss_tokens for update in updates)
        metrics.append(
            {
                "loss/policy": loss_sum / tokens,
                "importance/masked_fraction": masked / tokens,
                "mtp/loss": mtp_loss / mtp_count,
                "grad_norm/policy": float(np.mean([each[0] for each in norms])),
                "grad_norm/mtp": float(np.mean([each[1] for each in norms])),
                "learner/num_loss_tokens": tokens,
            }
        )
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_weights()}
    tokens = torch.tensor([PROBE])
    plain = AutoModelForCausalLM.from_pretrained(policy_folder)
    plain.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    logp = plain(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    return {"metrics": metrics, "weights": weights, "probe": [0.0, *logp.tolist()]}


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_and_rank_count_equals_plain_torch(
    stage: int, num_ranks: int, policy_folder: Path, tmp_path: Path, reference: Result
) -> None:
    results = play(run_steps, policy_folder, tmp_path, run_config(zero_stage=stage), num_ranks)
    assert_equal(results, reference)


def assert_equal(results: list[Result], reference: Result) -> None:
    for result in results:
        for got, expected in zip(result["metrics"], reference["metrics"], strict=True):
            assert {name: got[name] for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)
        assert result["probe"] == pytest.approx(reference["probe"], abs=1e-5)
        for name, whole in results[0]["weights"].items():
            np.testing.assert_array_equal(result["pieces"][name], whole.ravel(), err_msg=name)
    assert list(results[0]["weights"]) == list(reference["weights"])
    for name, expected in reference["weights"].items():
        np.testing.assert_allclose(results[0]["weights"][name], expected, atol=2e-5, rtol=0, err_msg=name)
    assert all(not result["weights"] for result in results[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "num_ranks"), [(0, 1), (2, 1), (3, 2)])
def test_gradients_within_their_limits_are_not_clipped_by_deepspeed(
    stage: int, num_ranks: int, policy_folder: Path, tmp_path: Path
) -> None:
    """Whose own clipping, of all together at 1.0, is on unless it is turned off."""
    config = run_config(zero_stage=stage, max_grad_norm=1e3, mtp={"max_grad_norm": 1e3})
    reference = in_plain_torch(policy_folder, policy_limit=1e3, mtp_limit=1e3, scale=LARGE)
    norms = [each["grad_norm/policy"] for each in reference["metrics"]]
    assert min(norms) > 2
    assert max(norms) > 1.1 * min(norms)
    assert_equal(play(run_large_steps, policy_folder, tmp_path, config, num_ranks), reference)


@pytest.mark.slow
def test_stages_1_and_2_take_the_same_steps_in_bfloat16(policy_folder: Path, tmp_path: Path) -> None:
    """Up to the order in which gradients of micro-batches and ranks are added up, though the optimizers differ."""
    results = []
    for stage in (1, 2):
        (folder := tmp_path / str(stage)).mkdir()
        config = run_config(zero_stage=stage, dtype="bfloat16", max_grad_norm=1.0)
        results.append(play(run_large_steps, policy_folder, folder, config, 2)[0])
    first, second = results
    moved = [np.abs(first["weights"][name] - first["before"][name]).mean() for name in first["weights"]]
    apart = [np.abs(first["weights"][name] - second["weights"][name]).mean() for name in first["weights"]]
    assert np.mean(apart) < 0.1 * np.mean(moved)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "num_ranks"), [(0, 1), (2, 2), (3, 2)])
def test_a_version_can_be_sent_again_until_the_next_step_is_finished(
    stage: int, num_ranks: int, policy_folder: Path, tmp_path: Path
) -> None:
    settings = run_config(zero_stage=stage)
    (tmp_path / "once").mkdir()
    once = play(run_steps, policy_folder, tmp_path / "once", settings, num_ranks)[0]
    twice = play(run_steps_sent_twice, policy_folder, tmp_path, settings, num_ranks)[0]
    for found, expected in ((twice["resent"][0], twice["before"]), (twice["weights"], once["weights"])):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    for expected, found in zip(once["metrics"], twice["metrics"], strict=True):
        assert {**found, "learner/step_seconds": 0} == {**expected, "learner/step_seconds": 0}


@pytest.mark.slow
def test_gradient_checkpointing_under_zero_3_changes_nothing(
    policy_folder: Path, tmp_path: Path, reference: Result
) -> None:
    config = run_config(zero_stage=3, gradient_checkpointing=True)
    result = play(run_steps, policy_folder, tmp_path, config, 2)[0]
    for name, expected in reference["weights"].items():
        np.testing.assert_allclose(result["weights"][name], expected, atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtype", "stopped"),
    [(0, "float32", "policy"), (1, "bfloat16", "mtp"), (2, "bfloat16", "policy"), (3, "bfloat16", "mtp")],
)
def test_each_group_is_clipped_by_its_own_norm(
    stage: int, dtype: str, stopped: str, policy_folder: Path, tmp_path: Path, reference: Result
) -> None:
    """A limit far below Adam's epsilon stops one group and leaves the other as it was."""
    nothing = {"max_grad_norm": 1e-14}
    settings = {"mtp": nothing} if stopped == "mtp" else nothing
    config = run_config(zero_stage=stage, dtype=dtype, weight_decay=0.0, **settings)
    (result,) = play(run_steps, policy_folder, tmp_path, config)
    for name, before in result["before"].items():
        moved = np.abs(result["weights"][name] - before).max()
        if ("mtp_layers" in name) == (stopped == "mtp"):
            assert moved < 1e-6, name
        elif before.ndim == 2:  # in bfloat16 a norm's weight of 1 does not show so small an update
            assert moved > 1e-4, name
    for name in ("grad_norm/policy", "grad_norm/mtp"):
        assert result["metrics"][0][name] == pytest.approx(reference["metrics"][0][name], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "num_ranks", "dtype"), [
    (0, 1, "float32"), (1, 2, "float32"), (2, 1, "bfloat16"), (2, 2, "float32"), (3, 2, "float32"),
])  # fmt: skip
def test_a_resumed_learner_goes_on_bit_for_bit(
    stage: int, num_ranks: int, dtype: str, policy_folder: Path, tmp_path: Path
) -> None:
    config = run_config(zero_stage=stage, dtype=dtype)
    saved = play(run_save, policy_folder, tmp_path, config, num_ranks)[0]["weights"]
    loaded = play(run_load, policy_folder, tmp_path, config, num_ranks)[0]
    assert all(np.array_equal(saved[name], loaded["weights"][name]) for name in saved)

    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert list(exported) == sorted(saved)
    for name, tensor in exported.items():
        assert str(tensor.dtype) == f"torch.{dtype}"
        assert np.array_equal(as_float32(tensor), loaded["loaded"][name])
    assert (tmp_path / "export" / "tokenizer.json").is_file()
    assert json.loads((tmp_path / "export" / "config.json").read_text())["architectures"] == ["MiMoForCausalLM"]


def test_a_checkpoint_of_another_layout_or_none_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"learner\.json is missing"):
        load_state(None, tmp_path, layout={"num_ranks": 2})
    (tmp_path / "learner.json").write_text('{"num_ranks": 4}')
    with pytest.raises(CheckpointError, match=r"num_ranks = 4, this run has 2.*policy\.path"):
        load_state(None, tmp_path, layout={"num_ranks": 2})


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_loading_in_the_same_process_rewinds_bit_for_bit(stage: int, policy_folder: Path, tmp_path: Path) -> None:
    (result,) = play(run_resume, policy_folder, tmp_path, run_config(zero_stage=stage))
    assert all(np.array_equal(result["weights"][name], result["weights_again"][name]) for name in result["weights"])
    for one, other in zip(result["straight"], result["again"], strict=True):
        assert one | {"learner/step_seconds": 0} == other | {"learner/step_seconds": 0}


@pytest.mark.slow
def test_two_runs_of_one_seed_are_bit_identical(policy_folder: Path, tmp_path: Path) -> None:
    one, other = (play(run_steps, policy_folder, tmp_path, run_config(), 2)[0]["weights"] for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_frozen_mtp_layer_stays_and_is_published_all_the_same(policy_folder: Path, tmp_path: Path) -> None:
    for stage in (2, 3):
        config = run_config(zero_stage=stage, mtp={"train": False})
        (result,) = play(run_steps, policy_folder, tmp_path, config)
        assert "mtp/loss" not in result["metrics"][0]
        for name, before in result["before"].items():
            assert np.array_equal(before, result["weights"][name]) == ("mtp_layers" in name), name


@pytest.mark.slow
def test_settings_that_do_not_fit_are_config_errors(policy_folder: Path, tmp_path: Path) -> None:
    plain = PolicyModel.load(policy_folder, dtype=torch.float32)
    plain.mtp = None
    plain.save(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"learner\.mtp\.train = false"):
        play(run_steps, tmp_path / "plain", tmp_path, run_config())
    with pytest.raises(ConfigError, match=r"learner\.zero_stage to 1"):
        play(run_steps, policy_folder, tmp_path, run_config(zero_stage=0, dtype="bfloat16"))


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_apart_equals_torchs_clip_for_each_group(limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [[torch.nn.Parameter(torch.zeros(3, n)) for n in sizes] for sizes in ((4, 5), (6,))]
    for group in groups:
        for parameter in group:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    copies = [[p.grad.clone() for p in group if p.grad is not None] for group in groups]
    norms = clip_apart(copies, [limit, 2 * limit], partitioned=False)
    expected = [
        torch.nn.utils.clip_grad_norm_(group, n).item() for group, n in zip(groups, (limit, 2 * limit), strict=True)
    ]
    assert norms == pytest.approx(expected, rel=1e-6)
    for group, copy in zip(groups, copies, strict=True):
        for parameter, gradient in zip(group, copy, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
