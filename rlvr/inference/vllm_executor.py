"""Starts vLLM's worker on the CPU as a fork of its engine core, which has imported what a worker needs.

vLLM does so by itself, except below a Ray actor: a process with Ray's threads must not be forked, and the engine core
inherits that ban though it has none of them. Importing vLLM once less is a fifth of an engine's start. Not on GPUs,
where the engine core may have begun to use CUDA.
"""

from __future__ import annotations

import os

from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class ForkingExecutor(MultiprocExecutor):
    """vLLM imports this class in its engine core, as the engine's `distributed_executor_backend`."""

    def _init_executor(self) -> None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        super()._init_executor()
