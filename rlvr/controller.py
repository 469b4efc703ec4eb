"""Wires the parts and runs the loops; owns no algorithm.

                      tasks                        groups of episodes                 packed batch
  task mixture ---------------> rollout workers -----------------------> group buffer ------------> learner ranks
  (environments, by weight)       play one episode:                      bounded staleness            DeepSpeed ZeRO
                                  sample, step, judge                    born fresh                   policy + MTP head
                                    |         ^                                                          |
                          prompt ids|         |completion ids, logprobs,                                 | version n+1
                          + budget  v         |weight-version spans                                      v
                                inference engines (vLLM, drafting with MTP)  <--- weight sync: policy AND draft ---

Three loops on one event loop; what fails in one ends the others, with its own traceback:

  loop       consumes              waits for                          is unblocked by            produces
  admit      tickets               a free slot                        a sync, a dropped group    running groups
  learn      ready groups          an admissible batch                a finished group           steps, checkpoints
  publish    a version             the version before it to be live   the learner's next step    free slots
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlvr.actors import EngineHandle, LearnerHandle, WorkerHandle
from rlvr.algorithms.advantage import has_spread, pass_rate
from rlvr.batching import pack, split_updates
from rlvr.buffer import GroupBuffer, Ready
from rlvr.config import RunConfig
from rlvr.errors import DeadlineExceeded, RlvrError
from rlvr.evaluation import Evaluation, compare, play_tasks, summarize
from rlvr.fleet import Fleet
from rlvr.inference.engine import Engine
from rlvr.ledger import Ledger
from rlvr.metrics import RolloutMeter
from rlvr.placement import Placement
from rlvr.report import Reporter
from rlvr.rollout.worker import Order
from rlvr.run_folder import FRESH, RunFolder, RunState
from rlvr.samples import samples_from_group
from rlvr.tasks import Member, Mixture, Ticket, held_out
from rlvr.types import Group, Sample
from rlvr.weight_sync import SyncReport

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 32


class Controller:
    """One run, from started actors to the last checkpoint."""

    def __init__(
        self,
        config: RunConfig,
        *,
        folder: RunFolder,
        members: Sequence[Member],
        model_folder: str,
        vocabulary_size: int,
        reporter: Reporter,
        engine_class: type[Engine] = Engine,
    ) -> None:
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.checkpoint = folder.latest()
        state = folder.load_state(self.checkpoint) if self.checkpoint else FRESH
        self.step = state.step
        self.version = self.live_version = state.version
        self.accuracy: float | None = None
        self._before = state.before
        self._trained_seconds = state.trained_seconds
        self._members = members
        self._sections = {member.name: member.section for member in members}
        self._mixture = Mixture(members, seed=config.run.seed, by=config.mixture.by, position=state.position)
        self._readmit = list(state.pending)
        self.ledger = Ledger(folder.ledger_path, length=state.ledger_length)
        folder.open_metrics(state.metrics_length)
        self._buffer = GroupBuffer(
            groups_per_batch=config.rollout.groups_per_batch, max_staleness=config.rollout.max_staleness
        )
        self._meter = RolloutMeter(max_invalid_fraction=config.run.max_invalid_fraction)
        self._playing: set[asyncio.Task[None]] = set()
        self._publishing: asyncio.Task[None] | None = None
        self._sync_report: SyncReport | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

        source = str(self.checkpoint / "model") if self.checkpoint else model_folder
        placement = Placement(config)
        self.engines = [
            EngineHandle(index, config, source, placement, engine_class)
            for index in range(config.inference.num_engines)
        ]
        self.learner = LearnerHandle(config, source, placement)
        self.workers = [
            WorkerHandle(index, config, source, self.engines) for index in range(config.rollout.num_workers)
        ]
        # Rounding of two implementations alone makes 4e-4 of 30 layers, on a prompt of unlikely tokens.
        exact = config.inference.dtype == "float32" or config.inference.gpus_per_engine == 0
        self._fleet = Fleet(
            self.engines,
            self.workers,
            self.learner,
            probe_ids=tuple(random.Random(0).randrange(vocabulary_size) for _ in range(_PROBE_TOKENS)),
            probe_tolerance=config.inference.probe_tolerance or (2e-3 if exact else 0.5),
            sleep=config.inference.sleep != "never",
        )

    async def run(self) -> None:
        """Train to the end, or to the first signal; raises what ended the run otherwise."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._start()
            if self.checkpoint is None:
                self._before = await self.evaluate(self.config.eval.num_tasks)
                self.accuracy = self._before.accuracy
                self.reporter.say(f"before training: {self._before.accuracy:.1%} of held-out tasks solved")
            await self._train()
            if not self._stop.is_set():
                await self._finish()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self._shut_down()

    # --- starting and ending

    async def _start(self) -> None:
        self.reporter.progress("starting engines, learner and workers")
        checkpoint = str(self.checkpoint / "learner") if self.checkpoint else None
        engines = asyncio.gather(*(engine.start(self.version) for engine in self.engines))
        if self.config.colocated:  # vLLM measures how much of a GPU it may take, and must not be disturbed
            await engines
        await asyncio.gather(engines, self.learner.start(checkpoint), *(worker.start() for worker in self.workers))
        await self._fleet.meet(self.version)
        if self.checkpoint:
            self.reporter.say(f"resumed from {self.checkpoint}")

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self.reporter.say(f"{signal.Signals(number).name}: ending the step, then a checkpoint; once more to leave now")
        self._stop.set()
        self._changed.set()

    async def _finish(self) -> None:
        """The last evaluation, and the comparison with the first."""
        after = await self.evaluate(self.config.eval.num_tasks)
        self.accuracy = after.accuracy
        self.reporter.table(
            f"{self.config.run.name}: {self.step} steps, {self._trained_seconds / 60:.1f} minutes of training, "
            f"{self.ledger.num_trained} tasks trained on, {self.ledger.dropped.total()} dropped",
            compare(self._before, after),
        )
        self.folder.write_metrics(
            {"step": self.step, "eval/accuracy/before": self._before.accuracy, "eval/accuracy/after": after.accuracy}
            | after.numbers
        )

    async def _shut_down(self) -> None:
        self.reporter.close()
        parts: list[Any] = [*self.workers, *self.engines, self.learner]
        await asyncio.gather(*(part.stop() for part in parts), return_exceptions=True)
        self.ledger.close()

    # --- the loops

    async def _train(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                admitting = group.create_task(self._admit_loop())
                await self._learn_loop()
                admitting.cancel()
                for playing in self._playing:
                    playing.cancel()
        except BaseExceptionGroup as failures:
            # One failure often brings others after it; the first is the cause.
            raise failures.exceptions[0] from None
        self.reporter.say("saving")
        if not self._stop.is_set():
            for ticket in self._buffer.pending:
                self._drop(ticket, "run_ended")
        await self._save()

    async def _admit_loop(self) -> None:
        """Fill every free slot; a resumed run's pending tickets come first."""
        while True:
            while self._buffer.num_free > 0:
                ticket = self._readmit.pop(0) if self._readmit else self._mixture.draw()
                self._buffer.admit(ticket, live_version=self.live_version)
                playing = self._group.create_task(self._play(ticket, self.live_version))
                self._playing.add(playing)
                playing.add_done_callback(self._playing.discard)
            await self._next_change()

    async def _play(self, ticket: Ticket, birth_version: int) -> None:
        """One group, from its admission to the buffer or the list of the dropped."""
        section = self._sections[ticket.task.environment]
        order = Order(
            series=self.folder.train_series,
            ticket=ticket.number,
            task=ticket.task,
            environment=list(self._sections).index(ticket.task.environment),
            group_size=section.group_size,
            temperature=section.temperature,
            birth_version=birth_version,
            seed=self.config.run.seed,
        )
        group = await self._fleet.play(order)
        self.folder.write_episodes("train", group.episodes)
        self._meter.add(group.episodes)
        rewards = [episode.verdict.reward for episode in group.episodes]
        if sum(reward is not None for reward in rewards) < 2:
            self._drop(ticket, "invalid")
        elif not has_spread(rewards):
            self._drop(ticket, "zero_spread", pass_rate(rewards))
        elif not (samples := self._samples(group)):
            self._drop(ticket, "masked", pass_rate(rewards))
        else:
            self._buffer.finish(ticket, group, samples)
        self._changed.set()

    def _drop(self, ticket: Ticket, reason: str, passed: float | None = None) -> None:
        self._buffer.drop(ticket)
        self._mixture.settle(ticket, pass_rate=passed, num_tokens=0)
        self._meter.drop(reason)
        self.ledger.drop(ticket, reason)

    async def _learn_loop(self) -> None:
        run, started = self.config.run, time.monotonic()
        while self.step < run.num_steps and not self._out_of_time():
            began = time.monotonic()
            batch = await self._next_batch()
            if batch is None:
                break
            waited = time.monotonic() - began
            metrics = await self._take_step(batch)
            metrics["time/wait_seconds"] = waited
            metrics["time/step_seconds"] = time.monotonic() - began
            self._trained_seconds += metrics["time/step_seconds"]
            if self.config.eval.every and self.step % self.config.eval.every == 0 and self.step < run.num_steps:
                await self._live()
                evaluation = await self.evaluate(self.config.eval.num_tasks_during)
                self.accuracy = metrics["eval/accuracy"] = evaluation.accuracy
                metrics |= evaluation.numbers
            metrics["time/elapsed_seconds"] = time.monotonic() - started  # with evaluations and checkpoints
            self.folder.write_metrics(metrics)
            self.reporter.step(
                metrics, num_steps=run.num_steps, accuracy=self.accuracy, left_seconds=self._seconds_left()
            )
            if self.step % run.checkpoint_every == 0 and self.step < run.num_steps:
                await self._save()
        await self._live()

    async def _next_batch(self) -> list[Ready] | None:
        """The next admissible batch; `None` once a signal has come. Raises `DeadlineExceeded`."""
        deadline = time.monotonic() + self.config.run.deadline_seconds
        while not self._stop.is_set():
            batch = self._buffer.take_batch(self.version)
            if batch is not None:
                return batch
            if not await self._next_change(deadline - time.monotonic()):
                if self._publishing is not None and not self._publishing.done():
                    await self._live()  # which has deadlines of its own, and engines that sample again only after it
                    deadline = time.monotonic() + self.config.run.deadline_seconds
                    continue
                running = ", ".join(ticket.task.id for ticket in self._buffer.pending[:3])
                raise DeadlineExceeded(
                    f"the learner's next batch ({self._buffer.num_ready} of "
                    f"{self.config.rollout.groups_per_batch} groups ready; oldest under way: {running})",
                    self.config.run.deadline_seconds,
                    "run.deadline_seconds sets the limit",
                )
        return None

    async def _take_step(self, batch: Sequence[Ready]) -> dict[str, float]:
        samples = [sample for ready in batch for sample in ready.samples]
        oldest = [sample.oldest_version for sample in samples]
        staleness = [self.version - version for version in oldest]
        if max(staleness) > self.config.rollout.max_staleness:
            raise RlvrError(
                f"a sample of version {min(oldest)} reached the learner at version {self.version}, past "
                f"rollout.max_staleness = {self.config.rollout.max_staleness}: a defect of rlvr.buffer; report it"
            )
        learner = self.config.learner
        updates = [
            pack(part, num_ranks=learner.num_ranks, micro_batch_tokens=learner.micro_batch_tokens)
            for part in split_updates(samples, learner.updates_per_batch)
        ]
        shards = [(update.shards, update.num_loss_tokens) for update in updates]
        async with self._fleet.asleep():
            metrics = await self.learner.step(shards, may_change=self._live)
        self.step += 1
        self.version += 1
        for ready in batch:
            self.ledger.trained(ready.ticket, step=self.step)
            num_tokens = sum(sum(sample.loss_mask) for sample in ready.samples)
            passed = pass_rate([episode.verdict.reward for episode in ready.group.episodes])
            self._mixture.settle(ready.ticket, pass_rate=passed, num_tokens=num_tokens)
            ages = [self.version - 1 - sample.oldest_version for sample in ready.samples]
            self._meter.trained(ready.ticket.task, ages, num_tokens)
        self._mixture.move_shares()
        metrics |= self._meter.take() | {
            "step": self.step,
            "staleness/mean": fmean(staleness),
            "staleness/max": max(staleness),
        }
        if self._sync_report is not None:
            metrics |= self._sync_report.metrics
        self._publishing = self._group.create_task(self._publish(self.version))
        # The references are made before the learner's next step is asked for, and so hold this version.
        await asyncio.sleep(0)
        return metrics

    def _samples(self, group: Group) -> tuple[Sample, ...]:
        section = self._sections[group.task.environment]
        masked = section.algorithm.mask_truncated
        std = section.algorithm.normalize_by_std
        return samples_from_group(group, normalize_by_std=std, mask_truncated=masked, loss=section.loss)

    async def _publish(self, version: int) -> None:
        """Bring a version to every engine while the learner goes on; then its slots are free."""
        self._sync_report = await self._fleet.publish(version)
        self.live_version = version
        self._buffer.release(version)
        self._changed.set()

    async def _live(self) -> None:
        """Wait until the version that is being published is in every engine."""
        if self._publishing is not None:
            await self._publishing

    # --- evaluation and checkpoints

    async def evaluate(self, num_tasks: int) -> Evaluation:
        """Greedy accuracy on held-out tasks."""
        tasks = await asyncio.to_thread(held_out, self._members, num_tasks=num_tasks)
        self.reporter.progress(f"evaluating {len(tasks)} held-out tasks")
        episodes = await play_tasks(
            self.workers,
            tasks,
            names=list(self._sections),
            at_once=self.config.inference.num_seats,
            series=self.folder.next_eval_series(),
            version=self.live_version,
            seed=self.config.run.seed,
        )
        self.folder.write_episodes("eval", tuple(episodes))
        return summarize(episodes)

    async def _save(self) -> None:
        """A checkpoint of this moment: no step is under way, whatever the rollouts do."""
        state = RunState(
            step=self.step,
            version=self.version,
            position=self._mixture.position,
            pending=tuple(self._readmit + self._buffer.pending),
            ledger_length=self.ledger.length,
            metrics_length=self.folder.metrics_length,
            trained_seconds=self._trained_seconds,
            before=self._before,
        )
        folder = self.folder.new_checkpoint(self.step)
        await self.learner.save(str(folder / "learner"), str(folder / "model"))
        await asyncio.to_thread(self.folder.commit, folder, state)

    # --- small things

    def _out_of_time(self) -> bool:
        minutes = self.config.run.max_minutes
        return minutes is not None and self._trained_seconds >= minutes * 60

    def _seconds_left(self) -> float:
        by_steps = self._trained_seconds / self.step * (self.config.run.num_steps - self.step)
        minutes = self.config.run.max_minutes
        return by_steps if minutes is None else min(by_steps, max(0.0, minutes * 60 - self._trained_seconds))

    async def _next_change(self, seconds: float | None = None) -> bool:
        """Wait until a group finished, slots came free or a signal came; False when `seconds` ran out."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
            return True
        return False
