"""A GPU sums weights as a CPU does: learner and engine may be either."""

from __future__ import annotations

import pytest
import torch

from rlvr.weights import Fingerprint
from tests.unit.test_weights import tensors

pytestmark = pytest.mark.gpu


def test_a_fingerprint_is_the_same_on_either_device() -> None:
    overflowing = torch.full((70, 3_000_000), -1, dtype=torch.int16)
    found = []
    for device in ("cpu", "cuda"):
        sums = Fingerprint()
        for name, tensor in (*tensors().items(), ("model.overflowing", overflowing)):
            sums.add(name, tensor.to(device), start=2**45)
        found.append(sums.checksum())
    assert found[0] == found[1]
