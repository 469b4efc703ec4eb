"""`rlvr train`: from a configuration to a finished run. What can be known to fail is found before Ray starts."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.config import RunConfig
from rlvr.errors import ConfigError, RlvrError
from rlvr.interfaces import Environment
from rlvr.published import readable
from rlvr.report import Reporter
from rlvr.run_folder import RunFolder
from rlvr.tasks import Member, make_members
from rlvr.types import THINK_END, THINK_START

STARTER = "starter"
_RAY_STARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the checks before a run have found and made."""

    members: tuple[Member, ...]
    model_folder: str
    vocabulary_size: int


def train(config: RunConfig, *, reporter: Reporter | None = None, engine_class: Any = None) -> None:
    """Run, or go on with, `config.run.name`. Raises `RlvrError`."""
    reporter = reporter or Reporter()
    folder = RunFolder(config)
    try:
        reporter.say(f"run folder {folder.path}")
        prepared = prepare(config, reporter)
        check_pending(folder, prepared.members)
        reporter.progress("starting Ray")
        with RayConnection(config, reporter):
            from rlvr.controller import Controller
            from rlvr.inference.engine import Engine

            async def run() -> None:
                # Inside the loop, since its parts belong to it.
                controller = Controller(
                    config,
                    folder=folder,
                    members=prepared.members,
                    model_folder=prepared.model_folder,
                    vocabulary_size=prepared.vocabulary_size,
                    reporter=reporter,
                    engine_class=engine_class or Engine,
                )
                await controller.run()

            asyncio.run(run())
    finally:
        reporter.close()
        folder.close()


def prepare(config: RunConfig, reporter: Reporter) -> Prepared:
    """Load the environments, find or build the policy, and check that they fit the rest. Raises `ConfigError`."""
    members = make_members(config.environments)
    model_folder = policy_folder(config, [member.environment for member in members], reporter)
    return Prepared(
        members=members, model_folder=model_folder, vocabulary_size=check_policy(config, Path(model_folder))
    )


def check_pending(folder: RunFolder, members: Sequence[Member]) -> None:
    """Whether the tasks that a resumed run takes up again still have their environments. Raises `ConfigError`."""
    checkpoint = folder.latest()
    if checkpoint is None:
        return
    pending = Counter(ticket.task.environment for ticket in folder.load_state(checkpoint).pending)
    for member in members:
        del pending[member.name]
    if pending:
        missing = ", ".join(f"{name!r} ({count} tasks)" for name, count in pending.items())
        raise ConfigError(
            f"run folder {folder.path} goes on from {checkpoint.name}, which has tasks under way of environments that "
            f"the configuration lacks: {missing}; put them back under [[environments]], or start another run from "
            f"these weights: run.name=NEW policy.path={checkpoint / 'model'}"
        )


def policy_folder(config: RunConfig, environments: Sequence[Environment], reporter: Reporter) -> str:
    """The checkpoint folder that `policy.path` names; the starter is built where it is not cached."""
    if config.policy.path == STARTER:
        from rlvr.starter.build import build_starter

        return str(build_starter(environments, seed=config.run.seed, progress=reporter.progress))
    return str(readable(Path(config.policy.path).absolute()))


def check_policy(config: RunConfig, folder: Path) -> int:
    """Whether the checkpoint can be trained as configured; the size of its tokenizer. Raises `ConfigError`."""
    from rlvr.learner.model import has_mtp
    from rlvr.tokenizer import load_tokenizer

    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"policy.path = {str(folder)!r} is no Hugging Face checkpoint folder (no config.json there); give a local "
            f"folder, or {STARTER!r} for the small policy that rlvr builds itself"
        )
    if not has_mtp(folder):
        for setting, value, way_out in (
            ("inference.num_draft_tokens", config.inference.num_draft_tokens, "0"),
            ("learner.mtp.train", config.learner.mtp.train, "false"),
        ):
            if value:
                raise ConfigError(
                    f"{setting} = {str(value).lower()} needs MTP weights, and policy.path = {str(folder)!r} has none "
                    f"(no model.mtp_layers.* or mtp.* tensors); set {setting} = {way_out}, or choose a policy with an "
                    "MTP layer"
                )
    tokenizer = load_tokenizer(folder)
    limited = [
        section.name
        for section in config.environments
        if section.answer_tokens or any(budget.tokens != "unlimited" for budget in section.thinking_tokens)
    ]
    for mark in (THINK_START, THINK_END):
        if limited and len(tokenizer.encode(mark, add_special_tokens=False)) != 1:
            raise ConfigError(
                f"environment {limited[0]!r} limits thinking_tokens, but {mark} is not one token of the policy "
                f"{str(folder)!r}, so a thought cannot be closed; set thinking_tokens = 'unlimited' and answer_tokens "
                "= 0"
            )
    return len(tokenizer)


class RayConnection:
    """Joins a running Ray where there is one, else starts one on this machine and stops it at the end.

    Running is what `ray start` or a Ray job left word of (`RAY_ADDRESS`, or Ray's own note of the current cluster). A
    Ray that another `rlvr train` started for itself is not joined.
    """

    def __init__(
        self, config: RunConfig, reporter: Reporter, *, parts: Sequence[str] = ("inference", "learner", "rollout")
    ) -> None:
        """`parts` are the sections of the config whose actors will be started."""
        self._config = config
        self._reporter = reporter
        self._parts = parts

    def __enter__(self) -> None:
        import ray
        from ray._private.utils import read_ray_address

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = self._config.ray.address
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or ""
        if address == "":
            noted = read_ray_address()
            # A Ray that was killed leaves its note behind, and asking it would take minutes.
            address = noted if noted and _answers(noted) else "local"
        if address == "local":
            self._start(options)
        else:
            if not _answers(address):
                raise ConfigError(
                    f"no Ray answers at {address!r} (from ray.address or RAY_ADDRESS); start it there, or set "
                    "ray.address=local"
                )
            ray.init(address=address, **options)
            self._reporter.say(f"joined the Ray cluster at {address}")
        _check_resources(self._config, ray.cluster_resources(), self._parts)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def _start(self, options: dict[str, Any]) -> None:
        import ray

        for tries_left in reversed(range(_RAY_STARTS)):
            try:
                ray.init(address="local", num_cpus=self._config.ray.num_cpus, include_dashboard=False, **options)
                return
            except Exception as error:
                # A bare one: a part of Ray did not start within Ray's own seconds, which nothing sets.
                if type(error) is not Exception:
                    raise
                ray.shutdown()
                if not tries_left:
                    raise RlvrError(
                        f"Ray did not start, {_RAY_STARTS} times: {error} Its logs: /tmp/ray/session_latest/logs; "
                        "a machine too busy for it may have one that started earlier: `ray start --head`"
                    ) from error
                self._reporter.say("Ray did not start in its own time, as on a busy machine; once more")


def _answers(address: str) -> bool:
    """Whether something listens at "host:port"; addresses of another form are left to Ray."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _check_resources(
    config: RunConfig, available: dict[str, float], wanted: Sequence[str] = ("inference", "learner", "rollout")
) -> None:
    """Raises `ConfigError` when the cluster could never place the actors: they would wait for ever."""
    everything: Sequence[tuple[str, int, float, float]] = (
        ("inference", config.inference.num_engines, config.inference.cpus_per_engine, config.inference.gpus_per_engine),
        ("learner", config.learner.num_ranks, config.learner.cpus_per_rank, config.learner.gpus_per_rank),
        ("rollout", config.rollout.num_workers, config.rollout.cpus_per_worker, 0.0),
    )
    parts = [part for part in everything if part[0] in wanted]
    for resource, index in (("CPU", 2), ("GPU", 3)):
        needed = sum(part[1] * float(part[index]) for part in parts)
        if needed > available.get(resource, 0.0):
            shares = ", ".join(f"{part[0]} {part[1]} x {part[index]}" for part in parts if part[index])
            raise ConfigError(
                f"the run needs {needed:g} {resource}s ({shares}), and Ray has {available.get(resource, 0.0):g}; lower "
                f"the {resource.lower()}s_per_... settings or the numbers of actors, or join a larger cluster"
            )
