"""Weights copied straight into a live model, where vLLM's reload would come to no more than that.

vLLM's layer-wise reload costs per tensor, not per byte: each layer is put on the meta device, materialised, loaded by
Python weight loaders, processed, and copied back. For most unquantized models all of it moves each incoming tensor into
a slice of a parameter that never changes. `Plan.of` finds those slices without knowing the model's class: it runs the
model's own `load_weights` once more, on tensors without data, and notes every copy instead of making it. Whatever it
cannot account for is `NotInPlace`, and that model stays with the reload.

A plan stands for what vLLM 0.32's reload does: `initialize_layerwise_reload`, `load_weights`, `finalize_...`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS
from vllm.v1.attention.backend import AttentionImplBase

from rlvr.weights import Fingerprint

# On CUDA neither touches the weights after loading; on the CPU the layout tells that they are packed.
_UNPROCESSED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_WORD = torch.int32  # with which the kernel that copies many tensors is fastest; 64 bits are slower again


class NotInPlace(Exception):
    """Why a model must go through vLLM's reload."""


class Piece(NamedTuple):
    """A slice of a live parameter, flat, and the element of the incoming tensor from which on it is filled."""

    target: Tensor
    start: int


class Incoming(NamedTuple):
    """A tensor as it is announced."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Copy(NamedTuple):
    """Bytes of live parameters, and the packed byte from which on they are filled."""

    target: Tensor
    start: int


class PackedLoad:
    """Loads tensors that lie end to end in one piece of memory. Made once: requests stand still while it is called.

    All copies are a few kernels, which move whole words where they can: byte by byte they would reach two thirds of the
    memory's speed, and with a launch from Python for each, launching would take longer than copying.
    """

    def __init__(self, copies: Sequence[Copy], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.copies = copies
        # Where `packed` last lay, and its pieces beside what they are copied to, in words and in bytes. The pieces keep
        # that memory, so nothing else can come to lie there.
        self._place = 0
        self._pieces: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def __call__(self, packed: Tensor) -> None:
        """`packed`: `num_bytes` of type uint8. On a GPU its copies are queued on the current stream."""
        if packed.data_ptr() != self._place:
            self._place, self._pieces = packed.data_ptr(), list(_cut(packed, self.copies))
        for targets, pieces in self._pieces:
            torch._foreach_copy_(targets, pieces)


def _cut(packed: Tensor, copies: Sequence[Copy]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Targets and the pieces of `packed` that belong there; first those that are whole words on both sides."""
    pairs = [(target, packed[start : start + len(target)]) for target, start in copies]
    for in_words in (True, False):
        chosen = [pair for pair in pairs if _is_words(*pair) == in_words]
        if chosen:
            dtype = _WORD if in_words else torch.uint8
            targets, pieces = ([tensor.view(dtype) for tensor in side] for side in zip(*chosen, strict=True))
            yield targets, pieces


def _is_words(target: Tensor, piece: Tensor) -> bool:
    places = (target.data_ptr(), piece.data_ptr(), target.storage_offset(), piece.storage_offset(), len(target))
    return all(place % _WORD.itemsize == 0 for place in places)


class Plan:
    """Where each incoming tensor of one model goes."""

    def __init__(self, pieces: Mapping[Incoming, Sequence[Piece]], parameters: Sequence[tuple[nn.Module, str]]) -> None:
        """`parameters` are those that the pieces fill, as (layer, attribute); they must stay where they are."""
        self._pieces = {incoming.name: (incoming, found) for incoming, found in pieces.items()}
        self._places = [(layer, name, getattr(layer, name).data_ptr()) for layer, name in parameters]

    @classmethod
    def of(cls, model: Any, model_config: Any, announced: Sequence[Incoming]) -> Plan:
        """For a model into which `announced` were loaded before. Raises `NotInPlace`; the model is as it was."""
        _refuse_processed(model, model_config)
        notes = _Notes(model)
        stand_ins = {each: torch.empty(each.shape, dtype=each.dtype, device="meta") for each in announced}
        notes.announce(stand_ins)
        try:
            with torch.no_grad(), disable_mtp_completeness_check(), notes:
                model.load_weights((each.name, tensor) for each, tensor in stand_ins.items())
        except NotInPlace:
            raise
        except Exception as error:  # A loader that reads values, say; nothing was written.
            raise NotInPlace(f"its load_weights needs more than names and shapes: {error!r}") from error
        parameters = list(_filled(model, notes.ranges))
        _refuse_gaps(parameters, notes.ranges)
        return cls(notes.pieces, [(layer, name) for layer, name, _ in parameters])

    def holds(self) -> bool:
        """Whether every parameter still lies where it was found; nothing may move it, since CUDA graphs do not ask."""
        return all(getattr(layer, name).data_ptr() == place for layer, name, place in self._places)

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy one bucket, in a few kernels. Raises `ValueError` before anything is written."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for name, tensor in weights:
            flat = tensor.reshape(-1)
            for target, start in self._pieces_of(Incoming(name, tensor.dtype, tuple(tensor.shape))):
                targets.append(target)
                sources.append(flat[start : start + len(target)])
        if targets:
            torch._foreach_copy_(targets, sources)

    def packed(self, announced: Sequence[Incoming]) -> PackedLoad:
        """How to load these tensors where they lie end to end; good for as long as this plan `holds`.

        Raises `ValueError` for one that was not planned.
        """
        copies: list[Copy] = []
        offset = 0
        for incoming in announced:
            for target, start in sorted(self._pieces_of(incoming), key=lambda piece: piece.start):
                copies.append(Copy(target.view(torch.uint8), offset + start * incoming.dtype.itemsize))
            offset += incoming.num_bytes
        return PackedLoad(_joined(copies), offset)

    def _pieces_of(self, incoming: Incoming) -> Sequence[Piece]:
        planned, pieces = self._pieces.get(incoming.name, (None, ()))
        if planned != incoming:
            raise ValueError(f"{incoming.name} came as {incoming.dtype} {incoming.shape}, but was planned as {planned}")
        return pieces

    def check_complete(self, loaded: Sequence[str]) -> None:
        """Raises `ValueError` unless `loaded` are the planned tensors, once each."""
        if sorted(loaded) != sorted(self._pieces):
            wrong = set(self._pieces).symmetric_difference(loaded) or {
                name for name in loaded if loaded.count(name) > 1
            }
            raise ValueError(f"not each planned tensor came once; the first that did not: {min(wrong)}")

    def fingerprint(self, order: Sequence[str]) -> Fingerprint:
        """Of the live parameters, as if the tensors had come again in that order."""
        found = Fingerprint()
        for name in order:
            incoming, pieces = self._pieces[name]
            whole = len(pieces) == 1 and len(pieces[0].target) == torch.Size(incoming.shape).numel()
            for target, start in pieces:
                # By rows and columns where it can be: one long row would need a second tensor of 64-bit words.
                found.add(name, target.view(incoming.shape) if whole else target, start=start)
        return found


def _joined(copies: Sequence[Copy]) -> list[Copy]:
    """Copies that go on where the one before ends, on both sides, as one: the rows of q, k and v, say."""
    joined: list[Copy] = []
    for copy in copies:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.start + len(last.target) == copy.start
            and _storage(last.target) == _storage(copy.target)
            and last.target.storage_offset() + len(last.target) == copy.target.storage_offset()
        ):
            joined[-1] = Copy(last.target.as_strided((len(last.target) + len(copy.target),), (1,)), last.start)
        else:
            joined.append(copy)
    return joined


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Under it a model's loaders copy nothing: copies into live parameters are noted, all but views is refused."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pieces: dict[Incoming, list[Piece]] = {}
        self.ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)  # elements written, by storage
        self._live = {_storage(tensor) for layer in model.modules() for _, tensor in _tensors(layer)}
        self._sources: dict[int, Incoming] = {}

    def announce(self, stand_ins: dict[Incoming, Tensor]) -> None:
        """Which tensors come from outside; they must outlive this."""
        self._sources = {_storage(tensor): incoming for incoming, tensor in stand_ins.items()}
        self.pieces = {incoming: [] for incoming in stand_ins}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._note(*args[:2])
            return args[0]
        if func is torch.ops.aten.fill_.Scalar:
            # Of a padded vocabulary, whose padding stays as the first load left it.
            self._cover(args[0])
            if not bool((args[0] == args[1]).all()):
                raise NotInPlace(f"its load_weights fills {tuple(args[0].shape)} elements with {args[1]} that are not")
            return args[0]
        if not func.is_view:
            raise NotInPlace(f"its load_weights does more than copy: {func}")
        return func(*args, **(kwargs or {}))

    def _note(self, target: Tensor, source: Tensor) -> None:
        incoming = self._sources.get(_storage(source)) if source.is_meta else None
        if incoming is None:
            raise NotInPlace(f"its load_weights copies {tuple(source.shape)} elements that are of no incoming tensor")
        if (source.dtype, source.shape) != (target.dtype, target.shape) or not source.is_contiguous():
            raise NotInPlace(
                f"{incoming.name} is converted: {source.dtype} {tuple(source.shape)}, strides {source.stride()}, into "
                f"{target.dtype} {tuple(target.shape)}"
            )
        self._cover(target)
        self.pieces[incoming].append(Piece(target.detach().view(-1), int(source.storage_offset())))

    def _cover(self, target: Tensor) -> None:
        if _storage(target) not in self._live or not target.is_contiguous():
            raise NotInPlace(f"its load_weights writes {tuple(target.shape)} elements that are no slice of a parameter")
        start = int(target.storage_offset())
        self.ranges[_storage(target)].append((start, start + target.numel()))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.stride()


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of the layer itself: its parameters and buffers, without buffers that no checkpoint has."""
    yield from ((name, tensor) for name, tensor in layer._parameters.items() if tensor is not None)
    for name, tensor in layer._buffers.items():
        if tensor is not None and name not in layer._non_persistent_buffers_set:
            yield name, tensor


def _refuse_processed(model: nn.Module, model_config: Any) -> None:
    """Whatever computes something from loaded weights would go on with that of the weights before."""
    if model_config.quantization is not None:
        raise NotInPlace(f"it is quantized ({model_config.quantization})")
    for name, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and type(method) not in _UNPROCESSED:
            raise NotInPlace(f"{name} processes its weights by {type(method).__name__}")
        if hasattr(layer, "cpu_linear"):
            raise NotInPlace(f"{name} has its weights packed for the CPU")
        if not callable(getattr(layer, "process_weights_after_loading", None)):
            continue
        backend = type(getattr(layer, "impl", None))
        plain = getattr(backend, "process_weights_after_loading", None)
        if type(layer) is not Attention or plain is not AttentionImplBase.process_weights_after_loading:
            raise NotInPlace(f"{name} ({type(layer).__name__}, {backend.__name__}) processes weights after loading")


def _filled(model: nn.Module, ranges: dict[int, list[tuple[int, int]]]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every tensor of the layers that something is loaded into: the reload makes those layers anew as a whole."""
    for path, layer in model.named_modules():
        live = dict(_tensors(layer))
        if not any(_storage(tensor) in ranges for tensor in live.values()):
            continue
        parameters, buffers = get_layerwise_info(layer).restore_metadata
        for name, tensor in live.items():
            if name in SKIP_TENSORS:  # which the reload leaves where they are
                continue
            expected = (parameters | buffers).get(name)
            if expected is None or _layout(tensor) != _layout(expected):
                raise NotInPlace(f"{path}.{name} does not lie as the checkpoint has it: {_layout(tensor)}")
        if missing := set(parameters) - set(live):
            raise NotInPlace(f"{path} has no {min(missing)} any more")
        yield from ((layer, name, tensor) for name, tensor in live.items())


def _refuse_gaps(parameters: Sequence[tuple[nn.Module, str, Tensor]], ranges: dict[int, list[tuple[int, int]]]) -> None:
    """Every element of every one must be written once: the reload would make up the others, a second would win."""
    for found in ranges.values():
        found.sort()
        for (_, end), (start, _) in itertools.pairwise(found):
            if start < end:
                raise NotInPlace("its load_weights writes an element twice")
    for layer, name, tensor in parameters:
        first, last = tensor.storage_offset(), tensor.storage_offset() + tensor.numel()
        written = ((max(first, start), min(last, end)) for start, end in ranges.get(_storage(tensor), ()))
        count = sum(max(0, end - start) for start, end in written)
        if count != tensor.numel() or not tensor.is_contiguous():
            raise NotInPlace(f"{type(layer).__name__}.{name}: {count} of {tensor.numel()} elements are loaded")
