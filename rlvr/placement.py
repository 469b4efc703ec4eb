"""Which GPU each actor gets.

Separate is Ray's own way: a learner rank or an engine with whole GPUs has them to itself. Colocated, engine i and
learner rank i have a fraction each of GPU i, so that weights pass between them without leaving it (CUDA IPC).
"""

from __future__ import annotations

from typing import Any

from rlvr.config import RunConfig


class Placement:
    """Reserves one GPU for each pair of engine and learner rank, where they share."""

    def __init__(self, config: RunConfig) -> None:
        self._group: Any = None
        if config.colocated:
            from ray.util.placement_group import placement_group

            cpus = config.inference.cpus_per_engine + config.learner.cpus_per_rank
            self._group = placement_group([{"GPU": 1, "CPU": cpus}] * config.learner.num_ranks)

    def options(self, index: int) -> dict[str, Any]:
        """Ray options of engine or learner rank `index`."""
        if self._group is None:
            return {}
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        return {"scheduling_strategy": strategy}
