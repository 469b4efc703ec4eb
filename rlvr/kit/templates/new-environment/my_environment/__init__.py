"""An environment for rlvr; the entry point leads here."""

from my_environment.environment import MyEnvironment

__all__ = ["MyEnvironment"]
