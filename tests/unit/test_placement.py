"""Where engines and learner run decides how weights travel; what cannot be is found before anything starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlvr import config
from rlvr.config import RunConfig
from rlvr.errors import ConfigError


def parsed(*, inference: dict[str, Any] | None = None, learner: dict[str, Any] | None = None) -> RunConfig:
    return config.parse(
        {
            "run": {"name": "test"},
            "environments": [{"name": "none"}],
            "inference": inference or {},
            "learner": learner or {},
        }
    )


@pytest.mark.parametrize(
    ("engine", "rank", "transport", "colocated", "memory"),
    [
        (0, 0, "memory", False, 0.85),
        (1, 1, "nccl", False, 0.85),
        (0.4, 0.6, "ipc", True, 0.34),
        (1, 0, "memory", False, 0.85),
        (0, 1, "memory", False, 0.85),
    ],
)
def test_weights_travel_the_shortest_way_that_the_placement_leaves(
    engine: float, rank: float, transport: str, colocated: bool, memory: float
) -> None:
    found = parsed(inference={"gpus_per_engine": engine}, learner={"gpus_per_rank": rank})
    assert found.transport == transport
    assert found.colocated is colocated
    assert found.gpu_memory_utilization == pytest.approx(memory)


def test_the_way_through_memory_can_be_chosen_anywhere_and_the_share_of_memory_too() -> None:
    found = parsed(
        inference={"gpus_per_engine": 0.5, "weight_transfer": "memory", "gpu_memory_utilization": 0.3},
        learner={"gpus_per_rank": 0.5},
    )
    assert found.transport == "memory"
    assert found.gpu_memory_utilization == 0.3


def test_a_draft_schedule_is_given_or_measured_and_by_default_neither() -> None:
    assert parsed().inference.draft_schedule == ()
    assert parsed(inference={"draft_schedule": "auto"}).inference.draft_schedule == "auto"
    given = parsed(inference={"num_draft_tokens": 2, "draft_schedule": [[1, 64, 2], [65, 128, 0]]})
    assert given.inference.draft_schedule == ((1, 64, 2), (65, 128, 0))
    assert config.parse(json.loads(config.dump(given))) == given


@pytest.mark.parametrize(
    ("inference", "learner", "said"),
    [
        ({"gpus_per_engine": 2}, {"gpus_per_rank": 1}, "gpus_per_engine = 2"),
        ({"gpus_per_engine": 0.5}, {"gpus_per_rank": 1}, "gpus_per_engine = 0.5"),
        ({"gpus_per_engine": 0.5}, {"gpus_per_rank": 0.6}, "add up to 1 at most"),
        ({"gpus_per_engine": 0.5, "num_engines": 2}, {"gpus_per_rank": 0.5}, "one engine beside it"),
        ({"weight_transfer": "nccl"}, {}, "possible are memory"),
        ({"gpus_per_engine": 0.5, "weight_transfer": "nccl"}, {"gpus_per_rank": 0.5}, "possible are ipc, memory"),
        ({"gpus_per_engine": 1, "weight_transfer": "ipc"}, {"gpus_per_rank": 1}, "possible are memory, nccl"),
        ({"sleep": "offload"}, {}, "where none is, 'pause'"),
        ({"sleep": "offload", "gpus_per_engine": 1}, {"gpus_per_rank": 1}, "where none is, 'pause'"),
        ({"num_draft_tokens": 1, "draft_schedule": [[1, 64, 2]]}, {}, "at most inference.num_draft_tokens = 1"),
        ({"num_draft_tokens": 1, "draft_schedule": [[2, 64, 1]]}, {}, "start at 1"),
        ({"num_draft_tokens": 1, "draft_schedule": [[1, 64, 1], [60, 80, 0]]}, {}, "begins where the one before ended"),
        ({"num_draft_tokens": 1, "draft_schedule": [[1, 64, 1], [66, 80, 0]]}, {}, "begins where the one before ended"),
        ({"num_draft_tokens": 1, "draft_schedule": [[1, 0, 1]]}, {}, "it is 'auto', or ranges"),
        ({"num_draft_tokens": 1, "draft_schedule": [[1, 9, 1], [10, 4, 0]]}, {}, "begins where the one before ended"),
        (
            {"num_draft_tokens": 1, "draft_schedule": [[1, 64]]},
            {},
            r"it is 'auto', or ranges .*\[from, to, ",
        ),
        ({"num_draft_tokens": 1, "draft_schedule": "fast"}, {}, "= \"fast\": it is 'auto', or ranges"),
        ({"num_draft_tokens": 0, "draft_schedule": "auto"}, {}, "num_draft_tokens = 0 must be at least 1"),
        ({"num_draft_tokens": 3, "draft_schedule": "auto", "max_num_seqs": 3}, {}, "below inference.max_num_seqs = 3"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_the_way_out(
    inference: dict[str, Any], learner: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed(inference=inference, learner=learner)
