"""An engine without vLLM, which samples by plain torch and breaks in updates as a script in a folder says.

The script: files named `ENGINE-VERSION-WHAT`. An update of that version takes the first away and does WHAT:
`refuse` (takes half of the weights, then fails) or `die` (takes half, then kills its own process).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr.errors import WeightSyncError
from rlvr.inference.engine import Engine, EngineSettings, UpdateReport
from rlvr.types import Completion, SamplingParams, WeightSpan
from rlvr.weights import Checksums, Weights


def scripted(script: Path) -> type[Engine]:
    """A class that Ray carries by value, with its script."""

    class Tiny(TinyEngine):
        folder = str(script)

    return Tiny


class TinyEngine(Engine):
    """As `Engine`, as far as a run asks for it."""

    folder: str
    _model: Any

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._running = asyncio.Event()

    async def start(self, version: int = 0) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(self.settings.model_folder, dtype=torch.float32)
        self.version = version
        self._running.set()

    async def update(self, weights: Weights) -> UpdateReport:
        import torch

        from rlvr.weights import PackedWeights, unpack

        assert isinstance(weights, PackedWeights)
        self._running.clear()
        await asyncio.sleep(0.2)  # requests are under way
        live = dict(self._model.named_parameters())
        tensors = list(unpack(weights.manifest, torch.from_numpy(weights.buffer.copy())))
        for number, (name, tensor) in enumerate(tensors):
            if number == len(tensors) // 2:
                what = self._next(weights.version)
                if what == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if what == "refuse":
                    raise WeightSyncError(f"version {weights.version} was not taken: {name} is torn")
            if name in live:
                live[name].data.copy_(tensor)
        self.version = weights.version
        self._running.set()
        return UpdateReport(
            version=self.version, checksums=Checksums(*weights.checksums()), paused_seconds=0.2, total_seconds=0.2,
            phases={}, loading={},
        )  # fmt: skip

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        import torch

        ids, logprobs, versions = list(prompt_ids), [], []
        generator = torch.Generator().manual_seed(params.seed or 0)
        stops = (self._model.config.eos_token_id, *params.stop_token_ids)
        while len(logprobs) < params.max_tokens and (not logprobs or ids[-1] not in stops):
            await asyncio.sleep(0.002)
            await self._running.wait()
            logp = self._logp(ids)[-1]
            ids.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
            logprobs.append(float(logp[ids[-1]]))
            versions.append(self.version)
        spans = [(version, versions.index(version), versions.count(version)) for version in sorted(set(versions))]
        return Completion(
            token_ids=tuple(ids[len(prompt_ids) :]),
            logprobs=tuple(logprobs),
            loss_mask=(1,) * len(logprobs),
            finish_reason="stop" if ids[-1] in stops else "length",
            weight_spans=tuple(WeightSpan(version, start, start + count) for version, start, count in spans),
        )

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        logp = self._logp(token_ids)
        return [float(logp[position, token]) for position, token in enumerate(token_ids[1:])]

    def acceptance_by_position(self) -> tuple[float, ...]:
        return ()

    async def stop(self) -> None:
        pass

    def _logp(self, ids: Sequence[int]) -> Any:
        import torch

        with torch.no_grad():
            return self._model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    def _next(self, version: int) -> str:
        for path in sorted(Path(self.folder).glob(f"{self.settings.index}-{version}-*")):
            path.unlink()
            return path.name.split("-")[2]
        return ""
