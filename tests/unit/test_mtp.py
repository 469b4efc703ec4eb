from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlvr.learner import model as model_module
from rlvr.learner.mtp import CHECKPOINT_PREFIX
from tests.unit.test_model import TEMPERATURE, micro_batch, reference_model, sequences, tiny_policy


def plain_mtp(w: dict[str, Tensor], hidden: Tensor, following: Tensor, *, heads: int, kv_heads: int) -> Tensor:
    """MiMo's layer for one sequence, written out from its definition: [length, size] of h_i and embed(t_{i+1})."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    length, size = hidden.shape
    head_size = size // heads
    following = following.clone()
    following[0] = 0
    x = torch.cat([norm(hidden, "hidden_layernorm"), norm(following, "token_layernorm")], -1) @ w["input_proj.weight"].T

    def project(y: Tensor, part: str, count: int) -> Tensor:
        return (y @ w[f"self_attn.{part}_proj.weight"].T + w[f"self_attn.{part}_proj.bias"]).view(
            length, count, head_size
        )

    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def rotate(y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    y = norm(x, "input_layernorm")
    q, k, v = rotate(project(y, "q", heads)), rotate(project(y, "k", kv_heads)), project(y, "v", kv_heads)
    out = torch.zeros(length, heads, head_size)
    for i in range(length):
        for h in range(heads):
            g = h // (heads // kv_heads)
            out[i, h] = (k[: i + 1, g] @ q[i, h] / math.sqrt(head_size)).softmax(0) @ v[: i + 1, g]
    x = x + out.reshape(length, size) @ w["self_attn.o_proj.weight"].T
    y = norm(x, "post_attention_layernorm")
    gate, up = y @ w["mlp.gate_proj.weight"].T, y @ w["mlp.up_proj.weight"].T
    x = x + (gate * gate.sigmoid() * up) @ w["mlp.down_proj.weight"].T
    return norm(x, "final_layernorm")


@pytest.mark.parametrize("top_k", [1, 6, 1000])
def test_mtp_loss_equals_an_independent_implementation(
    top_k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "ROWS_AT_ONCE", 5)
    model, batch = tiny_policy(), micro_batch()
    batch.loss_mask[9:12] = 0
    reference = reference_model(model, tmp_path)
    tensors = load_file(tmp_path / "reference" / "model.safetensors")
    layer = {
        name.removeprefix(CHECKPOINT_PREFIX): t for name, t in tensors.items() if name.startswith(CHECKPOINT_PREFIX)
    }
    head = tensors["model.embed_tokens.weight"]

    loss, count, top1, acceptance = 0.0, 0, 0, 0.0
    with torch.no_grad():
        for tokens, where in sequences(batch):
            hidden: list[Tensor] = []
            hook = reference.model.norm.register_forward_pre_hook(lambda _, args, box=hidden: box.append(args[0][0]))
            policy = (reference(tokens[None]).logits[0] / TEMPERATURE).softmax(-1)
            hook.remove()
            following = head[torch.cat([tokens[1:], tokens[:1]])]
            draft = (plain_mtp(layer, hidden[0], following, heads=4, kv_heads=2) @ head.T / TEMPERATURE).softmax(-1)
            for i in range(len(tokens) - 2):
                if batch.loss_mask[where][i + 2] == 0:
                    continue
                values, ids = policy[i + 1].topk(min(top_k, 40))
                loss -= float((values / values.sum() * draft[i, ids].log()).sum())
                count += 1
                top1 += int(draft[i].argmax() == policy[i + 1].argmax())
                acceptance += float(torch.minimum(draft[i], policy[i + 1]).sum())
        output = model(batch, TEMPERATURE, mtp_top_k=top_k)
    assert output.mtp_count == count == 5 + 8 + 2
    assert output.mtp_loss.item() == pytest.approx(loss, rel=1e-5)
    assert output.mtp_top1 == top1
    assert output.mtp_acceptance.item() == pytest.approx(acceptance, rel=1e-5)


def test_no_gradient_of_the_mtp_loss_reaches_trunk_embeddings_or_head() -> None:
    for tied in (True, False):
        model = tiny_policy(tied=tied)
        model(micro_batch(), TEMPERATURE, mtp_top_k=6).mtp_loss.backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.policy.parameters())
        assert model.mtp is not None
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.mtp.parameters())


def test_gradient_of_the_mtp_loss_equals_finite_differences() -> None:
    model, batch = tiny_policy().double(), micro_batch()
    assert model.mtp is not None
    model(batch, TEMPERATURE, mtp_top_k=6).mtp_loss.backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.mtp.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for step in (1e-3, -2e-3):
                parameter += step * direction
                losses.append(model(batch, TEMPERATURE, mtp_top_k=6).mtp_loss.item())
            parameter += 1e-3 * direction
        slope = (losses[0] - losses[1]) / 2e-3
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-2, abs=1e-2), name


def test_without_an_mtp_layer_or_with_top_k_0_there_is_no_mtp_loss() -> None:
    batch = micro_batch()
    for output in (tiny_policy(mtp=False)(batch, 1.0, mtp_top_k=6), tiny_policy()(batch, 1.0)):
        assert output.mtp_loss == 0
        assert output.mtp_count == 0
