"""Errors travel between actors by pickle, and arrive as what they were."""

from __future__ import annotations

import pickle

import pytest

from rlvr import errors

EXAMPLES = [
    errors.ConfigError("run.name = '' is empty"),
    errors.DeadlineExceeded("engine 0 to load the model", 5.0, "run.deadline_seconds sets the limit"),
    errors.ComponentDied("engine 0", "its traceback"),
    errors.EngineLost("engine 0", "its traceback"),
    errors.UpdateFailed(3, {"engine 0": "its tensor was torn"}),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_with_its_text_and_its_fields(error: errors.RlvrError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
