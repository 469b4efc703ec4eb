"""CUDA's streams and events on a machine without a GPU, where all is done in the order in which it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch


class FakeEvent:
    """Has happened once `over` says so."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.query = over


class FakeStream:
    """What it is given is over as soon as `over` says so, by default at once."""

    over: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(self, **_: Any) -> None:
        pass

    def record_event(self) -> FakeEvent:
        return FakeEvent(FakeStream.over)

    def wait_event(self, event: FakeEvent) -> None:
        assert isinstance(event, FakeEvent)

    def wait_stream(self, stream: FakeStream) -> None:
        assert isinstance(stream, FakeStream)

    def synchronize(self) -> None:
        pass


def pretend(monkeypatch: pytest.MonkeyPatch, over: Callable[[], bool] = lambda: True) -> None:
    """Put the fakes in place of torch's."""
    monkeypatch.setattr(FakeStream, "over", staticmethod(over))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
