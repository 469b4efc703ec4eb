"""Group -> samples: what of a group's episodes is trained on, and how strongly. Pure."""

from __future__ import annotations

from rlvr.algorithms.advantage import group_advantages, has_spread
from rlvr.types import Episode, Group, LossSettings, Sample


def samples_from_group(
    group: Group, *, normalize_by_std: bool, mask_truncated: bool, loss: LossSettings
) -> tuple[Sample, ...]:
    """One sample a valid episode that has tokens to learn from, in order; none at all where rewards have no spread.

    `mask_truncated` leaves out episodes that ran out of completion tokens; they still count in the group's baseline.
    """
    rewards = [episode.verdict.reward for episode in group.episodes]
    if not has_spread(rewards):
        return ()
    advantages = group_advantages(rewards, normalize_by_std=normalize_by_std)
    samples = [
        sample_from_episode(episode, advantage, birth_version=group.birth_version, loss=loss)
        for episode, advantage in zip(group.episodes, advantages, strict=True)
        if advantage is not None and not (mask_truncated and episode.stop == "completion_budget")
    ]
    return tuple(sample for sample in samples if any(sample.loss_mask))


def sample_from_episode(episode: Episode, advantage: float, *, birth_version: int, loss: LossSettings) -> Sample:
    """The whole conversation as one sequence, token by token as it was: prompts, tool output, completions."""
    token_ids: list[int] = []
    loss_mask: list[int] = []
    logprobs: list[float] = []
    for turn in episode.turns:
        num_new = len(turn.prompt_ids)
        token_ids += turn.prompt_ids + turn.completion.token_ids
        loss_mask += (0,) * num_new + turn.completion.loss_mask
        logprobs += (0.0,) * num_new + turn.completion.logprobs
    oldest = episode.oldest_version
    return Sample(
        token_ids=tuple(token_ids),
        loss_mask=tuple(loss_mask),
        behaviour_logprobs=tuple(logprobs),
        advantages=tuple(advantage * mask for mask in loss_mask),
        oldest_version=birth_version if oldest is None else oldest,
        loss=loss,
    )
