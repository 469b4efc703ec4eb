"""The configuration: one frozen tree, from a TOML file plus dotted overrides (`learner.learning_rate=1e-4`).

Every mistake that can be known before anything starts is found here: unknown keys, values out of range, and settings
that contradict each other. A message names the value, the rule and the way out.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from rlvr.config_environment import (
    AlgorithmSection,
    EnvironmentSection,
    Fraction,
    NonNegativeInt,
    Section,
    check_environment,
    check_importance,
    check_sampling,
)
from rlvr.errors import ConfigError
from rlvr.inference.draft_schedule import check_schedule

# Ray sets it for the drivers of submitted jobs.
_RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class RunSection(Section):
    """The run as a whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is <folder>/<name>")
    folder: str = "runs"
    seed: int = 0
    num_steps: PositiveInt = 100
    max_minutes: PositiveFloat | None = Field(None, description="stop training (and checkpoint) after so long")
    checkpoint_every: PositiveInt = Field(20, description="steps")
    keep_checkpoints: PositiveInt = 2
    max_invalid_fraction: Fraction = Field(0.2, description="of the last 200 episodes; past it the run stops")
    deadline_seconds: PositiveFloat = Field(600.0, description="the longest wait for any one part of the run")


class PolicySection(Section):
    """Which weights the run starts from."""

    path: str = Field("starter", description="'starter', or a local Hugging Face checkpoint folder")


class RolloutSection(Section):
    """How episodes are played."""

    num_workers: PositiveInt = 1
    cpus_per_worker: float = Field(0.2, ge=0, description="Ray CPUs reserved for each worker")
    groups_per_batch: PositiveInt = Field(16, description="tasks in one optimizer step")
    group_size: int = Field(8, description="episodes of one task")
    max_staleness: NonNegativeInt = Field(1, description="in policy versions; 0 is the synchronous run")
    temperature: float = 1.0
    top_p: float = 1.0


class InferenceSection(Section):
    """The engines."""

    num_engines: PositiveInt = 1
    cpus_per_engine: float = Field(0.5, ge=0)
    gpus_per_engine: float = Field(0.0, ge=0)
    num_draft_tokens: NonNegativeInt = Field(1, description="drafted by the MTP layer at once; 0 turns drafting off")
    draft_schedule: Literal["auto"] | tuple[tuple[PositiveInt, PositiveInt, NonNegativeInt], ...] = Field(
        (),
        description="[from, to, draft tokens]: depth by the number of running requests, or 'auto': measured by each "
        "engine; empty: always all of them, and only then do runs of one seed repeat bit for bit",
    )
    max_num_seqs: PositiveInt = Field(128, description="requests that run at once in one engine")
    max_model_len: PositiveInt = Field(512, description="tokens, prompt and completion together")
    max_num_batched_tokens: PositiveInt = 4096
    kv_cache_bytes: PositiveInt | None = Field(
        None, description="default 1 GiB on CPU; on a GPU what gpu_memory_utilization leaves beside the weights"
    )
    gpu_memory_utilization: Fraction | None = Field(
        None, description="of the whole GPU; default 0.85, and 0.85 * gpus_per_engine on a shared one"
    )
    weight_transfer: Literal["auto", "memory", "ipc", "nccl"] = Field(
        "auto", description="auto: nccl between GPUs, ipc on a shared one, memory (shared with the host) elsewhere"
    )
    sleep: Literal["never", "pause", "offload"] = Field(
        "never", description="while the learner steps; 'offload': cache dropped, weights in host memory (a shared GPU)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: float32 on CPU, bfloat16 on GPU")
    enforce_eager: bool | Literal["auto"] = Field("auto", description="auto: true on CPU, false on GPU")
    cuda_graph_tokens: PositiveInt | None = Field(
        None, description="steps of up to so many run as CUDA graphs; default: all requests, all drafts, and a quarter"
    )
    num_threads: PositiveInt = Field(1, description="CPU threads of one engine")
    probe_tolerance: PositiveFloat | None = Field(
        None, description="largest log-probability difference to the learner after a sync; default 2e-3 in float32"
    )

    @field_validator("draft_schedule", mode="wrap")
    @classmethod
    def _schedule_or_auto(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(
                "it is 'auto', or ranges of running requests with the tokens drafted there, [from, to, draft tokens], "
                "as in [[1, 64, 1], [65, 512, 0]]"
            ) from None

    @property
    def num_seats(self) -> int:
        """Episodes that keep the engines busy: as many again as they run are with their environments."""
        return 2 * self.num_engines * self.max_num_seqs


class MtpSection(Section):
    """The MTP layer's own training."""

    train: bool = True
    learning_rate: PositiveFloat = 3e-4
    top_k: PositiveInt = Field(16, description="of the policy's distribution, the soft target")
    max_grad_norm: PositiveFloat = 1.0


class LearnerSection(Section):
    """The learner: one DeepSpeed rank an actor."""

    num_ranks: PositiveInt = 1
    cpus_per_rank: float = Field(0.5, ge=0)
    gpus_per_rank: float = Field(0.0, ge=0)
    num_threads: PositiveInt = Field(1, description="CPU threads of one rank")
    zero_stage: Literal[0, 1, 2, 3] = 2
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: float32 on CPU, bfloat16 on GPU")
    micro_batch_tokens: PositiveInt = Field(4096, description="packed tokens in one forward pass")
    updates_per_batch: PositiveInt = Field(1, description="optimizer steps a batch is split into")
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 0
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    compile: bool | Literal["auto"] = Field("auto", description="fuse layers; auto: on a GPU below ZeRO stage 3")
    mtp: MtpSection = MtpSection()


class MixtureSection(Section):
    """What the weights of the environments hold."""

    by: Literal["tasks", "tokens"] = Field("tasks", description="weights share out tasks drawn, or tokens trained on")


class EvalSection(Section):
    """Greedy accuracy on held-out tasks, before, during and after."""

    num_tasks: PositiveInt = 512
    every: PositiveInt | None = Field(20, description="steps between evaluations during training")
    num_tasks_during: PositiveInt = 128


class RaySection(Section):
    """Which Ray to use."""

    address: str = Field("auto", description="'auto': join a running cluster, else start one; 'local'; or host:port")
    num_cpus: PositiveInt | None = Field(None, description="of a local Ray that we start; default: all")


class RunConfig(Section):
    """The whole tree. `load` reads it from a file; the resolved one is written to the run folder."""

    run: RunSection
    environments: tuple[EnvironmentSection, ...] = Field(min_length=1)
    mixture: MixtureSection = MixtureSection()
    policy: PolicySection = PolicySection()
    rollout: RolloutSection = RolloutSection()
    inference: InferenceSection = InferenceSection()
    learner: LearnerSection = LearnerSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    eval: EvalSection = EvalSection()
    ray: RaySection = RaySection()

    @model_validator(mode="after")
    def _inherit(self) -> Self:
        """Environments take from the run what they do not set themselves."""
        resolved = []
        for section in self.environments:
            given = section.model_fields_set
            own = {name: getattr(section.algorithm, name) for name in section.algorithm.model_fields_set}
            inherited: dict[str, Any] = {"algorithm": self.algorithm.model_copy(update=own)}
            for name in ("group_size", "temperature"):
                if name not in given:
                    inherited[name] = getattr(self.rollout, name)
            resolved.append(section.model_copy(update=inherited))
        object.__setattr__(self, "environments", tuple(resolved))
        return self

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        rollout, learner = self.rollout, self.learner
        if rollout.top_p != 1.0:
            raise ValueError(
                f"rollout.top_p = {rollout.top_p}: training needs top_p = 1, because with less the engine samples from "
                "a cut distribution and its log-probabilities are not the policy's; remove top_p, or lower "
                "rollout.temperature instead"
            )
        check_sampling("rollout", rollout.group_size, rollout.temperature)
        check_importance("algorithm", self.algorithm)
        parts = learner.num_ranks * learner.updates_per_batch
        for group_size in {section.group_size for section in self.environments}:
            episodes = rollout.groups_per_batch * group_size
            if episodes % parts:
                raise ValueError(
                    f"rollout.groups_per_batch * rollout.group_size = {rollout.groups_per_batch} * {group_size} = "
                    f"{episodes} episodes do not divide over learner.num_ranks * learner.updates_per_batch = "
                    f"{learner.num_ranks} * {learner.updates_per_batch} = {parts}; choose groups_per_batch a multiple "
                    "of it"
                )
        if learner.micro_batch_tokens < self.inference.max_model_len:
            raise ValueError(
                f"learner.micro_batch_tokens = {learner.micro_batch_tokens} is below inference.max_model_len = "
                f"{self.inference.max_model_len}: the longest sequence must fit one micro-batch; raise the first or "
                "lower the second"
            )
        for section in self.environments:
            check_environment(section, max_model_len=self.inference.max_model_len)
        return self

    @model_validator(mode="after")
    def _placement(self) -> Self:
        inference, learner = self.inference, self.learner
        for name, gpus in (
            ("inference.gpus_per_engine", inference.gpus_per_engine),
            ("learner.gpus_per_rank", learner.gpus_per_rank),
        ):
            if gpus not in (0, 1) and not self.colocated:
                raise ValueError(
                    f"{name} = {gpus}: a part runs on the CPU (0) or has one GPU to itself (1), or engine and learner "
                    "rank share one: then set fractions for both, as in inference.gpus_per_engine = 0.4 and "
                    "learner.gpus_per_rank = 0.6"
                )
        if self.colocated and (
            inference.gpus_per_engine + learner.gpus_per_rank > 1 or inference.num_engines != learner.num_ranks
        ):
            raise ValueError(
                f"inference.gpus_per_engine = {inference.gpus_per_engine}, learner.gpus_per_rank = "
                f"{learner.gpus_per_rank}, inference.num_engines = {inference.num_engines}, learner.num_ranks = "
                f"{learner.num_ranks}: on shared GPUs each learner rank has one engine beside it, and the two "
                "fractions add up to 1 at most"
            )
        on_gpus = inference.gpus_per_engine > 0 and learner.gpus_per_rank > 0
        possible = {"memory", "ipc" if self.colocated else "nccl"} if on_gpus else {"memory"}
        if inference.weight_transfer not in possible | {"auto"}:
            raise ValueError(
                f"inference.weight_transfer = {inference.weight_transfer!r} does not fit where engines "
                f"(gpus_per_engine = {inference.gpus_per_engine}) and learner (gpus_per_rank = "
                f"{learner.gpus_per_rank}) run; possible are {', '.join(sorted(possible))}, and 'auto' chooses"
            )
        if inference.sleep == "offload" and not self.colocated:
            raise ValueError(
                "inference.sleep = 'offload' makes room on a GPU that engine and learner share; where none is, 'pause'"
            )
        check_schedule(
            inference.draft_schedule,
            num_draft_tokens=inference.num_draft_tokens,
            max_num_seqs=inference.max_num_seqs,
        )
        return self

    @property
    def colocated(self) -> bool:
        """Whether engines and learner ranks share GPUs."""
        return 0 < self.inference.gpus_per_engine < 1 and 0 < self.learner.gpus_per_rank < 1

    @property
    def transport(self) -> Literal["memory", "ipc", "nccl"]:
        """How weights travel: `inference.weight_transfer`, resolved."""
        if self.inference.weight_transfer != "auto":
            return self.inference.weight_transfer
        if not (self.inference.gpus_per_engine and self.learner.gpus_per_rank):
            return "memory"
        return "ipc" if self.colocated else "nccl"

    @property
    def gpu_memory_utilization(self) -> float:
        """`inference.gpu_memory_utilization`, resolved."""
        given = self.inference.gpu_memory_utilization
        return given if given is not None else 0.85 * (self.inference.gpus_per_engine or 1)

    @property
    def run_folder(self) -> Path:
        """Absolute. A Ray job's working folder is a copy that Ray deletes: there, relative paths start at home."""
        base = Path.home() if _RAY_JOB_VARIABLE in os.environ else Path.cwd()
        return base / self.run.folder / self.run.name


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, apply `section.key=value` overrides (values are TOML, bare words are strings), validate.

    Raises `ConfigError`.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no config file {str(path)!r}; configs/quickstart.toml is one to start from") from error
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(tree, override)
    return parse(tree, source=str(path))


def parse(tree: dict[str, Any], *, source: str = "config") -> RunConfig:
    """Validate a tree of plain values. Raises `ConfigError` with one line a mistake."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        details = error.errors()
        # What is wrong within it makes a table or list wrong too; that goes without saying.
        wholes = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]))}
        lines = [_explain(detail) for detail in details if detail["loc"] not in wholes]
        raise ConfigError(f"{source}:\n  " + "\n  ".join(lines)) from None


def dump(config: RunConfig) -> str:
    """The resolved config as JSON, every default written out."""
    return config.model_dump_json(indent=2) + "\n"


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(
                    f"override {override!r}: {'.'.join(keys[:depth])} is a list of {len(node)}; write its index, "
                    f"as in {'.'.join(keys[:depth])}.0"
                )
            if last:
                node[int(key)] = value
            else:
                node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            raise ConfigError(f"override {override!r}: {'.'.join(keys[:depth])} is a value, not a table")


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    dotted = ".".join(location)
    if detail["type"] == "extra_forbidden":
        siblings = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], siblings, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(siblings)}"
        return f"{dotted}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{dotted}: required, and not given"
    message = detail["msg"].removeprefix("Value error, ")
    if not dotted:
        return str(message)
    return f"{dotted} = {json.dumps(detail['input'], default=str)}: {message[0].lower() + message[1:]}"


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in location:
        if key.isdigit():
            continue
        annotation = model.model_fields[key].annotation
        candidates = [annotation, *get_args(annotation)]
        nested = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
