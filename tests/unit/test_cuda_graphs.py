"""Which steps run as CUDA graphs."""

from __future__ import annotations

import itertools

import pytest

from rlvr.inference.cuda_graphs import capture_sizes


@pytest.mark.parametrize(("max_num_seqs", "num_draft_tokens"), [(1, 0), (1, 3), (100, 1), (512, 0), (512, 3)])
def test_every_step_of_all_requests_and_all_drafts_is_captured_and_little_is_padded(
    max_num_seqs: int, num_draft_tokens: int
) -> None:
    sizes = capture_sizes(max_num_seqs=max_num_seqs, num_draft_tokens=num_draft_tokens, max_num_batched_tokens=10**6)
    decoding = max_num_seqs * (1 + num_draft_tokens)
    assert {max_num_seqs, decoding} <= set(sizes)
    assert decoding <= sizes[-1] <= 1.25 * decoding
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller < larger <= max(smaller + 8, smaller * 9 / 8)
    assert len(sizes) < 60


def test_a_step_is_never_larger_than_what_the_engine_takes_or_the_setting_allows() -> None:
    settings = {"max_num_seqs": 512, "num_draft_tokens": 3}
    assert capture_sizes(**settings, max_num_batched_tokens=1000)[-1] == 1000
    assert capture_sizes(**settings, max_num_batched_tokens=8192, most=700)[-1] == 700
    assert capture_sizes(**settings, max_num_batched_tokens=8192, most=1) == [1]
