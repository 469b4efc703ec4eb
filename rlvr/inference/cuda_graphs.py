"""Which steps of vLLM run as CUDA graphs.

By vLLM's own list a step of more than 512 tokens runs without: hundreds of kernels, launched one by one from Python. A
rollout engine takes such a step all the time, since hundreds of requests draft, and prompts are read beside them.
"""

from __future__ import annotations


def capture_sizes(
    *, max_num_seqs: int, num_draft_tokens: int, max_num_batched_tokens: int, most: int | None = None
) -> list[int]:
    """Tokens of the steps to capture, ascending: a step is padded to the next size, by an eighth at most beyond 64.

    Up to `most`; by default up to what all requests with all their drafts make, and a quarter more for prompts.
    """
    decoding = max_num_seqs * (1 + num_draft_tokens)
    most = min(most or decoding * 5 // 4, max_num_batched_tokens)
    sizes = {most, *(size for size in (1, 2, 4, max_num_seqs, decoding) if size < most)}
    size = 8
    while size < most:
        sizes.add(size)
        size += max(8, 2 ** (size.bit_length() - 1) // 8)
    return sorted(sizes)
