"""Weights copied in place are, bit for bit, those that vLLM's own reload leaves; what a plan cannot tell is reloaded.

vLLM's real model classes, on the CPU, where packing linear weights is turned off: so they lie as on a GPU.
"""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.inference.engine import environment_variables
from rlvr.learner.model import PolicyModel
from rlvr.weights import Checksums, Part, pack, part_of
from tests.fake_cuda import pretend
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow

Weights = list[tuple[str, torch.Tensor]]
CASES: dict[str, tuple[str, Part]] = {
    "stacked projections": ("mimo", "policy"),
    "a draft that shares its embedding": ("mimo", "draft"),
    "tied and padded vocabulary": ("llama", "policy"),
}


@pytest.fixture(scope="module", autouse=True)
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process as vLLM's only worker."""
    os.environ.update(environment_variables(num_threads=1, on_gpu=False))
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    with pytest.MonkeyPatch.context() as patched, set_current_vllm_config(VllmConfig()):
        patched.setattr("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", lambda *_, **__: None)
        place = tmp_path_factory.mktemp("rendezvous") / "file"
        init_distributed_environment(1, 0, f"file://{place}", 0, backend="gloo")
        initialize_model_parallel()
        yield
        destroy_model_parallel()
        destroy_distributed_environment()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    mimo, llama = (tmp_path_factory.mktemp(name) for name in ("mimo", "llama"))
    write_checkpoint(mimo)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(llama)
    return {"mimo": mimo, "llama": llama}


class Subject:
    """One part of a fresh engine's worker: the model, and the transfer engine that loads it."""

    def __init__(self, folder: Path, part: Part) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader.utils import initialize_model

        from rlvr.inference.vllm_extension import MemoryTransferEngine

        drafting = {"method": "mtp", "num_speculative_tokens": 1} if part == "draft" else None
        config = EngineArgs(
            model=str(folder), tokenizer=None, skip_tokenizer_init=True, dtype="float32", max_model_len=64,
            enforce_eager=True, speculative_config=drafting,
        ).create_engine_config()  # fmt: skip
        self.part = part
        self.model_config = config.speculative_config.draft_model_config if drafting else config.model_config
        with set_current_vllm_config(config):
            self.model: Any = initialize_model(config, model_config=self.model_config)
        for tensor in self.model.parameters():
            tensor.data.zero_()  # so that what no checkpoint fills is the same in every subject
        policy = self.model if part == "policy" else torch.nn.Module()
        transfer: Any = MemoryTransferEngine(
            WeightTransferConfig(backend="rlvr_memory"), config, torch.device("cpu"), policy
        )
        self.transfer = transfer
        transfer.set_weight_update_target(self.model, self.model_config)

    def update(self, weights: Weights, borders: Sequence[int] = ()) -> Checksums:
        """Policy or draft, in buckets cut at `borders`."""
        self.load(weights, borders)
        sums: Checksums = self.transfer.checksums()
        return sums

    def load(self, weights: Weights, borders: Sequence[int] = ()) -> None:
        """An update without its checksums."""
        from rlvr.inference.vllm_extension import MemoryUpdateInfo

        self.transfer._sums = {}
        self.transfer.start_weight_update()
        with pack(1, weights).offer() as offer:
            path, manifest = (offer[self.part][key] for key in ("path", "manifest"))
            for first, last in zip([0, *borders], [*borders, len(manifest)], strict=True):
                self.transfer.receive_weights(MemoryUpdateInfo(path=path, manifest=manifest[first:last]))
        self.transfer.finish_weight_update()

    @property
    def loading(self) -> str:
        """How the next update will be loaded."""
        how: str = self.transfer.how_loaded(self.part)
        return how

    def bits(self) -> dict[str, bytes]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {
            name: tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in named
        }


def checkpoint(folder: Path, part: Part, seed: int) -> Weights:
    """What a learner would send: the names and shapes of a policy, with other values for each seed."""
    generator = torch.Generator().manual_seed(seed)
    weights = PolicyModel.load(folder, dtype=torch.float32).named_weights()
    return [(name, torch.randn(weight.shape, generator=generator)) for name, weight in weights if part_of(name) == part]


def published(weights: Weights) -> Checksums:
    return pack(1, weights).checksums()


@pytest.mark.parametrize("case", CASES)
def test_any_order_and_any_buckets_leave_what_vllms_reload_leaves(case: str, folders: dict[str, Path]) -> None:
    name, part = CASES[case]
    folder = folders[name]
    planned, reloaded = Subject(folder, part), Subject(folder, part)
    first = checkpoint(folder, part, 0)
    assert planned.loading == "reload: the first update"
    assert planned.update(first) == published(first)
    assert planned.loading == "in place"
    for seed in range(1, 13):
        weights = checkpoint(folder, part, seed)
        dice = random.Random(seed)
        dice.shuffle(weights)
        borders = sorted(dice.sample(range(1, len(weights)), dice.randrange(len(weights) - 1)))
        assert planned.update(weights, borders) == published(weights)
        reloaded.transfer._plans = {part: _REFUSED}
        reloaded.update(sorted(weights))
        assert planned.bits() == reloaded.bits()


def test_nothing_of_the_reload_runs_once_there_is_a_plan(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(folders["mimo"], "policy")
    subject.update(checkpoint(folders["mimo"], "policy", 0))
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.delattr(f"rlvr.inference.vllm_extension.{name}")
    monkeypatch.setattr(type(subject.model), "load_weights", None)
    before = {name: parameter.data_ptr() for name, parameter in subject.model.named_parameters()}
    subject.update(checkpoint(folders["mimo"], "policy", 1))
    assert {name: parameter.data_ptr() for name, parameter in subject.model.named_parameters()} == before


def test_a_parameter_that_was_moved_sends_the_next_update_through_the_reload(folders: dict[str, Path]) -> None:
    subject = Subject(folders["mimo"], "policy")
    subject.update(checkpoint(folders["mimo"], "policy", 0))
    norm = subject.model.model.norm
    norm.weight.data = norm.weight.data.clone()
    weights = checkpoint(folders["mimo"], "policy", 1)
    subject.update(weights)
    assert torch.equal(norm.weight, dict(weights)["model.norm.weight"])
    assert subject.loading == "in place"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda weights: weights[:-1], "not each planned tensor came once; the first that did not: model.norm.weight"),
        (lambda weights: [*weights, weights[0]], "not each planned tensor came once"),
        (lambda weights: [*weights[:-1], ("model.norm.weight", torch.ones(3))], "but was planned as"),
        (lambda weights: [*weights, ("model.other", torch.ones(3))], "model.other came as"),
    ],
    ids=["missing", "twice", "another shape", "unknown"],
)
def test_an_update_that_is_not_the_planned_one_is_an_error(
    spoil: Callable[[Weights], Weights], complaint: str, folders: dict[str, Path]
) -> None:
    subject = Subject(folders["llama"], "policy")
    weights = checkpoint(folders["llama"], "policy", 0)
    subject.update(weights)
    assert weights[-1][0] == "model.norm.weight"
    with pytest.raises(ValueError, match=complaint):
        subject.update(spoil(weights))


def test_the_checksum_is_that_of_the_live_parameters(folders: dict[str, Path]) -> None:
    subject = Subject(folders["mimo"], "policy")
    weights = checkpoint(folders["mimo"], "policy", 0)
    subject.update(weights)
    plan = subject.transfer._plans["policy"]
    names = [name for name, _ in weights]
    right = plan.fingerprint(names).checksum()
    assert right == published(weights).policy
    row = subject.model.model.layers[1].mlp.gate_up_proj.weight.data[130]  # of up_proj, stacked under gate_proj
    row[[3, 4]] = row[[4, 3]]
    assert plan.fingerprint(names).checksum() != right


# --- from a learner's GPU, which a fake group stands for


class Loopback:
    """A group of one sender and one receiver, whose broadcasts meet in their order."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def broadcast(self, tensor: torch.Tensor, *, src: int, stream: Any = None) -> None:
        self.sent.append(tensor.clone())

    def receiver(self) -> Any:
        class Receiver:
            @staticmethod
            def broadcast(tensor: torch.Tensor, *, src: int, stream: Any = None) -> None:
                tensor.copy_(self.sent.pop(0))

            @staticmethod
            def destroy() -> None:
                pass

        return Receiver()


@pytest.mark.parametrize("bucket_bytes", [1, 5_000, 30_000, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_what_the_learner_queues_is_what_an_engine_loads_whatever_the_buckets(
    case: str, bucket_bytes: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlvr.inference.vllm_extension import NcclTransferEngine
    from rlvr.learner.publisher import NcclPublisher

    pretend(monkeypatch)
    monkeypatch.setattr("rlvr.learner.publisher.BROADCAST_BYTES", bucket_bytes)
    name, part = CASES[case]
    subject, reloaded = Subject(folders[name], part), Subject(folders[name], part)
    weights = checkpoint(folders[name], part, 0)
    subject.update(weights)
    reloaded.update(weights)
    group, transfer = Loopback(), subject.transfer
    transfer.__class__ = NcclTransferEngine
    transfer.model_update_group = group.receiver()
    transfer.packed_buffer_size_bytes, transfer.packed_num_buffers = bucket_bytes, 2
    for seed in range(1, 4):
        weights = checkpoint(folders[name], part, seed)
        parameters = [(name, torch.nn.Parameter(tensor)) for name, tensor in weights]
        publisher = NcclPublisher(parameters, lambda sent=parameters: iter(sent), rank=0, partitioned=False)
        publisher._group = group
        offered = publisher.offer(seed)
        assert offered is not None
        assert publisher.send() == published(weights)
        publisher.wait(1)
        transfer.start_weight_update()
        with offered.offer() as infos:
            transfer.receive_weights(SimpleNamespace(**infos[part]))
        transfer.finish_weight_update()
        assert group.sent == []
        assert transfer.checksums() == published(weights)
        reloaded.transfer._plans = {part: _REFUSED}
        reloaded.update(weights)
        assert subject.bits() == reloaded.bits()


@pytest.mark.parametrize("case", CASES)
def test_what_lies_packed_in_the_learners_memory_is_what_an_engine_loads(
    case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlvr.inference import vllm_extension
    from rlvr.learner.publisher import IpcPublisher

    pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="this"))
    name, part = CASES[case]
    subject, reloaded = Subject(folders[name], part), Subject(folders[name], part)
    weights = checkpoint(folders[name], part, 0)
    subject.update(weights)
    reloaded.update(weights)
    transfer = subject.transfer
    transfer.__class__, transfer._mapped = vllm_extension.IpcTransferEngine, {}
    exported: list[torch.Tensor] = []  # a handle is a place in it
    mapped: list[int] = []

    def reduce_tensor(tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        exported.append(tensor)
        return None, (len(exported) - 1, *"abcdefg")

    def rebuild(handle: int, *_: Any) -> torch.Tensor:
        mapped.append(handle)
        return exported[handle]

    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_tensor", reduce_tensor)
    monkeypatch.setattr(vllm_extension, "rebuild_cuda_tensor", rebuild)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda found, mine: found.__setitem__(0, mine))
    # Two versions of one learner, and one of another that lists its weights the other way round.
    current: list[tuple[str, torch.nn.Parameter]] = []
    for seed, order in ((1, 1), (2, 1), (3, -1)):
        weights = checkpoint(folders[name], part, seed)[::order]
        current[:] = [(name, torch.nn.Parameter(tensor)) for name, tensor in weights]
        if seed != 2:
            publisher = IpcPublisher(current, lambda: iter(current), rank=0)
        offered = publisher.offer(seed)
        assert offered is not None
        assert publisher.send() == published(weights)
        transfer.start_weight_update()
        with offered.offer() as infos:
            transfer.receive_weights(SimpleNamespace(**infos[part]))
        transfer.finish_weight_update()
        assert transfer.checksums() == published(weights)
        reloaded.transfer._plans = {part: _REFUSED}
        reloaded.update(weights)
        assert subject.bits() == reloaded.bits()
    assert mapped == [0, 1]


def test_rows_of_one_parameter_are_copied_together(folders: dict[str, Path]) -> None:
    subject = Subject(folders["llama"], "policy")
    weights = checkpoint(folders["llama"], "policy", 0)
    subject.update(weights)
    plan = subject.transfer._plans["policy"]
    load = plan.packed([plan._pieces[name][0] for name, _ in weights])
    assert len(load.copies) == len(list(subject.model.parameters())) < len(weights)


def test_bytes_are_copied_as_they_are_whether_they_make_whole_words_or_not() -> None:
    from rlvr.inference.in_place import Copy, PackedLoad

    generator, words_too = random.Random(0), False
    for _ in range(50):
        packed = torch.randint(0, 256, (4_096,), dtype=torch.uint8)
        live, expected = torch.zeros(8_192, dtype=torch.uint8), torch.zeros(8_192, dtype=torch.uint8)
        copies, start, target = [], 0, 0
        while (size := generator.choice([1, 2, 3, 4, 6, 8, 64, 128])) + start <= len(packed):
            copies.append(Copy(live[target : target + size], start))
            expected[target : target + size] = packed[start : start + size]
            start += size
            target += size + generator.choice([0, 0, 1, 4])
        load = PackedLoad(copies, start)
        load(packed[:start])
        assert live.equal(expected)
        words_too |= len(load._pieces) == 2
    assert words_too


def test_who_asks_for_sums_is_not_held_up_by_them_and_hears_of_each_update_once(folders: dict[str, Path]) -> None:
    subject = Subject(folders["llama"], "policy")
    transfer, may_sum, sum_up = subject.transfer, threading.Event(), subject.transfer.checksums

    def held_up() -> Checksums:
        assert may_sum.wait(60)
        return sum_up()

    transfer.checksums = held_up
    for seed in range(2):
        weights = checkpoint(folders["llama"], "policy", seed)
        subject.load(weights)
        assert transfer.summed() is None
        assert transfer.summed() is None
        may_sum.set()
        while (found := transfer.summed()) is None:
            time.sleep(0.001)
        assert found == published(weights)
        may_sum.clear()


# --- what is not in place

_REFUSED = "for the test"


def _quantized(subject: Subject) -> None:
    subject.model_config = copy.copy(subject.model_config)
    subject.model_config.quantization = "fp8"
    subject.transfer.model_config = subject.model_config


def _transposed(subject: Subject) -> None:
    layer = subject.model.model.layers[0].mlp.down_proj
    layer.weight.data = layer.weight.data.t().contiguous().t()


def _computed(subject: Subject) -> None:
    layer = subject.model.model.layers[0].mlp.down_proj
    layer.register_parameter("scale", torch.nn.Parameter(layer.weight.data.amax(1)))


def _gone(subject: Subject) -> None:
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    parameters, _ = get_layerwise_info(subject.model.model.layers[0].mlp.down_proj).restore_metadata
    parameters["other"] = torch.empty(3, device="meta")


def _another_method(subject: Subject) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    layer = subject.model.model.layers[0].mlp.down_proj
    layer.quant_method.__class__ = type("Doubling", (UnquantizedLinearMethod,), {})


def _packed(subject: Subject) -> None:
    subject.model.model.layers[0].mlp.down_proj.cpu_linear = torch.nn.functional.linear


def _derived(subject: Subject) -> None:
    subject.model.model.layers[1].process_weights_after_loading = lambda _: None


def _another_attention(subject: Subject) -> None:
    attention = subject.model.model.layers[0].self_attn.attn
    attention.impl.__class__ = type(
        "Sinks", (type(attention.impl),), {"process_weights_after_loading": lambda *_: None}
    )


def _loads_by(loader: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[[Subject], None]:
    def spoil(subject: Subject) -> None:
        subject.model.model.norm.weight.weight_loader = loader

    return spoil


def _half_filled(subject: Subject) -> None:
    layer = subject.model.model.norm
    layer.register_parameter("bias", torch.nn.Parameter(torch.ones(5)))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_quantized, "quantized (fp8)"),
        (_transposed, "writes (64, 128) elements that are no slice of a parameter"),
        (_computed, "model.layers.0.mlp.down_proj.scale does not lie as the checkpoint has it"),
        (_gone, "model.layers.0.mlp.down_proj has no other any more"),
        (_another_method, "model.layers.0.mlp.down_proj processes its weights by Doubling"),
        (_packed, "packed for the CPU"),
        (_derived, "model.layers.1 (Qwen2DecoderLayer"),
        (_another_attention, "Sinks) processes weights"),
        (_half_filled, "RMSNorm.bias: 0 of 5 elements"),
        (_loads_by(lambda live, new: live.data.copy_(new * 2)), "does more than copy: aten.mul"),
        (_loads_by(lambda live, new: live.data.add_(new)), "does more than copy: aten.add_"),
        (_loads_by(lambda live, new: live.data.copy_(new.flip(0))), "does more than copy: aten.flip"),
        (_loads_by(lambda live, new: live.data.copy_(new[:1])), "model.norm.weight is converted"),
        (_loads_by(lambda live, new: (live.data.copy_(new), live.data.copy_(new))), "writes an element twice"),
        (_loads_by(lambda live, new: live.data[:9].copy_(new[:9])), "RMSNorm.weight: 9 of 64 elements"),
        (_loads_by(lambda live, new: live.data[::2].copy_(new[:32])), "no slice of a parameter"),
        (_loads_by(lambda live, new: live.data.fill_(3)), "fills (64,) elements with 3 that are not"),
        (_loads_by(lambda live, new: live.data.copy_(torch.from_numpy(new.numpy()))), "more than names and shapes"),
        (_loads_by(lambda live, new: live.data.fill_(new[0].item())), "does more than copy: aten._local_scalar_dense"),
        (_loads_by(lambda live, new: live.data.copy_(live.data)), "of no incoming tensor"),
    ],
)  # fmt: skip
def test_a_model_that_does_anything_else_stays_with_the_reload_and_is_left_alone(
    spoil: Callable[[Subject], None], reason: str, folders: dict[str, Path]
) -> None:
    from rlvr.inference.in_place import Incoming, NotInPlace, Plan

    subject = Subject(folders["mimo"], "policy")
    weights = checkpoint(folders["mimo"], "policy", 0)
    subject.update(weights)
    announced = [Incoming(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]
    Plan.of(subject.model, subject.model_config, announced)
    spoil(subject)
    before = subject.bits()
    with pytest.raises(NotInPlace) as refused:
        Plan.of(subject.model, subject.model_config, announced)
    assert reason in str(refused.value)
    assert subject.bits() == before


def test_a_checkpoint_of_another_type_is_reloaded_every_time(folders: dict[str, Path]) -> None:
    subject = Subject(folders["mimo"], "policy")
    weights = [(name, tensor.to(torch.bfloat16)) for name, tensor in checkpoint(folders["mimo"], "policy", 0)]
    for _ in range(2):
        assert subject.update(weights) == published(weights)
        assert subject.loading.startswith("reload: model.embed_tokens.weight is converted: torch.bfloat16")
    assert torch.equal(subject.model.model.norm.weight, dict(weights)["model.norm.weight"].float())
