"""Every guarantee of the sandbox, as an attack on it. `sandbox.self_check` runs them on the machine at hand."""

from __future__ import annotations

from sandbox.attacks.attack import Attack
from sandbox.attacks.escapes import ESCAPES
from sandbox.attacks.kernel import KERNEL
from sandbox.attacks.lies import LIES
from sandbox.attacks.resources import RESOURCES

ATTACKS: tuple[Attack, ...] = (*RESOURCES, *ESCAPES, *KERNEL, *LIES)

__all__ = ["ATTACKS", "Attack"]
