"""What only a CUDA GPU computes, against what a CPU computes: attention over packed rows, fused scores, layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlvr.learner.attention import Packing, _attend_fa4, _attend_padded, _attend_varlen, has_fa4
from tests.unit.test_model import TEMPERATURE, micro_batch, tiny_policy

pytestmark = pytest.mark.gpu

LENGTHS = (130, 1, 64, 300, 17)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing, float], torch.Tensor]


@pytest.mark.parametrize("attend_fast", [_attend_varlen, _attend_fa4], ids=["fa2", "fa4"])
@pytest.mark.parametrize(("heads", "groups", "size"), [(8, 2, 64), (12, 2, 128), (4, 2, 32), (6, 6, 64)])
def test_variable_length_attention_equals_padded_attention_in_output_and_gradients(
    heads: int, groups: int, size: int, attend_fast: Attend
) -> None:
    if attend_fast is _attend_fa4 and not has_fa4():
        pytest.skip("needs FlashAttention 4 and a Hopper or Blackwell")
    torch.manual_seed(0)
    position_ids = torch.cat([torch.arange(length) for length in LENGTHS]).cuda()
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32).cuda()
    packing = Packing.of(cu_seqlens, position_ids)
    inputs = [torch.randn(len(position_ids), n, size, device="cuda") for n in (heads, groups, groups)]
    target = torch.randn(len(position_ids), heads, size, device="cuda")
    results = []
    for attend, dtype in ((_attend_padded, torch.float32), (attend_fast, torch.bfloat16)):
        leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in inputs]
        output = attend(*leaves, packing, size**-0.5)
        (output.float() * target).sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for exact, fast in zip(*results, strict=True):
        assert float((fast.float() - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_scores_and_learns_as_a_cpu_does_in_float32(compiled: bool) -> None:
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        model = tiny_policy().to(device)
        if compiled and device == "cuda":
            model.compile_layers()
        for seed, lengths in enumerate([(7, 1, 12, 4), (30, 3), (5, 5, 5, 9)]):
            output = model(micro_batch(lengths, seed=seed).to(torch.device(device)), TEMPERATURE, mtp_top_k=4)
            ((output.logprobs * 0.1).sum() + output.mtp_loss).backward()
        outputs.append([value.detach().cpu() for value in output])
        gradients.append({name: weight.grad.cpu() for name, weight in model.named_parameters()})
    for exact, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, exact, atol=2e-4, rtol=1e-3)
    for name, exact in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], exact, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
