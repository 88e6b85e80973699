"""One YAML, five sections, the same for every system: load it, override it, refuse what it does not know.

A config is frozen once read. Its *identity* is what makes two runs the same run: everything but the budget
(how long, how often to log and save) and the host (how many workers, how large a micro-batch fits, who holds which state).
This module never imports torch: it is on the path of ``launch.py --dry-run``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from pipeline.errors import UserError, nearest


class Section(BaseModel):
    """Base of every config section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


class ModelSection(Section):
    """The ``model:`` section that every system's own ``ModelConfig`` extends.

    ``system`` is the name of a folder in ``models/``. ``live`` names the fields that a run may change while it goes on
    (``--resume RUN --set``): loss weights and the like, whole sections of them too, never what shapes the network. ``optimizers`` are the
    names that ``TrainModule.configure_optimizers`` gives them: a GAN has two. ``runs`` names the fields that hold other runs whose
    weights are needed (a reward model, a teacher), beside ``init_from``.
    """

    live: ClassVar[tuple[str, ...]] = ()
    optimizers: ClassVar[tuple[str, ...]] = ("main",)
    runs: ClassVar[tuple[str, ...]] = ()

    system: str

    @property
    def part_folder(self) -> str:
        """Where train module, generation and evaluation lie below ``models/``: ``dismix``; ``cqtml/reward`` of several kinds."""
        return self.system

    def data_problems(self, info: dict[str, Any]) -> list[str]:
        """What of the data, by its manifest's ``info``, keeps this model from being trained on it: one sentence each."""
        return []


class Schedule(Section):
    """Learning-rate factor by optimizer step: linear warm-up, then constant, cosine or linear to ``final_ratio``.

    ``decay_steps`` is the step at which ``final_ratio`` is reached. It is not ``trainer.max_steps``: extending a run
    must not change the steps it has already made.
    """

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(None, gt=0)
    final_ratio: float = Field(0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _decay_needs_an_end(self) -> Schedule:
        if self.name != "constant" and (self.decay_steps is None or self.decay_steps <= self.warmup_steps):
            raise ValueError(f"a {self.name} schedule needs decay_steps greater than warmup_steps")
        return self


class Ramp(Section):
    """A value that goes from ``first`` to ``last`` between the steps ``begin`` and ``end``: loss weights, noise, the onset of a GAN."""

    first: float
    last: float
    begin: int = Field(0, ge=0)
    end: int = Field(ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Ramp:
        if self.end < self.begin:
            raise ValueError("a ramp needs an end that is not before its begin")
        return self

    def at(self, step: int) -> float:
        """A pure function of the step, so nothing is carried over a restart."""
        if step >= self.end:
            return self.last
        done = max(0.0, (step - self.begin) / (self.end - self.begin))
        if self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.first + (self.last - self.first) * done


class OptimizerChoice(Section):
    name: Literal["adam", "adamw", "radam"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = Schedule()


class SecondOptimizer(OptimizerChoice):
    """Of a module that trains with several; the first one's gradients are clipped to ``trainer.grad_clip``, this one's to its own."""

    grad_clip: float | None = Field(None, gt=0)


class OptimizerSection(OptimizerChoice):
    """The first of ``ModelSection.optimizers``; ``also`` holds the others by name."""

    also: dict[str, SecondOptimizer] = {}


class DataSection(Section):
    """``batch_size`` is global: the sum over all ranks and accumulation steps.

    ``partner``: with every sample comes another of the same split, drawn independently; its fields are called ``other_...``.
    ``of``: a run that these data were made by, and lie in the folder of; a config's name is its run in a chain, else its newest.
    """

    recipe: str
    codec: str | None = None
    of: str | None = None
    batch_size: int = Field(gt=0)
    partner: bool = False
    workers: int = Field(0, ge=0)

    @property
    def folder_name(self) -> str:
        return self.recipe if self.codec is None else f"{self.recipe}-{self.codec}"


class Keep(Section):
    """Which checkpoints stay: the ``last`` K, the ``best`` K by validation loss, and every ``every`` steps."""

    last: int = Field(2, ge=1)
    best: int = Field(1, ge=0)
    every: int | None = Field(None, gt=0)


class DeepSpeed(Section):
    """ZeRO (arXiv 1910.02054): what each rank holds only its share of.

    Stage 1: optimizer states and averages; 2: gradients, too; 3: weights, too. Read where ``strategy`` is deepspeed.
    """

    stage: Literal[1, 2, 3] = 2


class Rollback(Section):
    """What is done where loss or gradient are not finite, or the loss leaps: back to the last good checkpoint, past that data.

    ``spike``: a loss so many robust deviations (1.4826 MAD) above the median of the last logged ones is a leap; None: none is.
    """

    times: int = Field(2, ge=0)  # in a run's life; then it stops and is not requeued
    spike: float | None = Field(None, gt=0)


class Profile(Section):
    """Torch's profiler over ``steps`` steps of every attempt, after the first ``skip``, on ``ranks``; traces lie in the run's profile/.

    No more than 20 steps: a trace has an entry for every operation and kernel.
    """

    steps: int = Field(0, ge=0, le=20)
    skip: int = Field(10, ge=0)
    ranks: tuple[int, ...] = (0,)


class TrainerSection(Section):
    max_steps: int = Field(gt=0)
    precision: Literal["32", "tf32", "bf16"] = (
        "32"  # tf32: as 32, but GPUs' products and convolutions with 10 bits of mantissa
    )
    strategy: Literal["ddp", "deepspeed"] = "ddp"  # who holds what; either computes the same steps
    deepspeed: DeepSpeed = DeepSpeed()
    micro_batch: int | None = Field(None, gt=0)  # samples a rank holds at once; None: its whole share of the batch
    compile: bool = False  # networks through torch.compile: minutes at every start for faster steps
    deterministic: bool = False  # on GPUs, the same bits every time, slower; an operation that cannot ends the run
    activation_checkpointing: bool = False  # compute activations again backwards: less memory, more time, the same bits
    grad_clip: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    log_every: int = Field(10, gt=0)
    validate_every: int = Field(1000, gt=0)
    validate_batches: int | None = Field(None, gt=0)  # None: the whole validation split
    save_every: int = Field(1000, gt=0)
    sample_every: int | None = Field(None, gt=0)
    keep: Keep = Keep()
    hang_seconds: float = Field(
        300, gt=0
    )  # no step for so long (and for 10 median steps) is a hang: stacks, end, requeue
    rollback: Rollback = Rollback()
    profile: Profile = Profile()


class RunConfig(Section):
    model: SerializeAsAny[ModelSection]
    data: DataSection
    optimizer: OptimizerSection
    trainer: TrainerSection
    seed: int = Field(0, ge=-(2**63), lt=2**63)  # what a key of 8 bytes can hold
    init_from: str | None = None

    @model_validator(mode="after")
    def _deepspeed_steps_one_optimizer(self) -> RunConfig:
        names = type(self.model).optimizers
        if self.trainer.strategy == "deepspeed" and len(names) > 1:
            raise ValueError(
                f"{self.model.system} trains with {len(names)} optimizers ({', '.join(names)}), and DeepSpeed steps one: "
                "set trainer.strategy=ddp"
            )
        return self

    @model_validator(mode="after")
    def _what_is_compiled_holds_its_weights(self) -> RunConfig:
        section = self.trainer
        if section.compile and section.strategy == "deepspeed" and section.deepspeed.stage == 3:
            raise ValueError(
                "trainer.compile needs whole weights, and ZeRO's stage 3 gathers them layer by layer: set trainer.deepspeed.stage=2, "
                "or trainer.compile=false"
            )
        return self

    @model_validator(mode="after")
    def _every_optimizer_is_described(self) -> RunConfig:
        _, *others = type(self.model).optimizers
        if set(others) != set(self.optimizer.also):
            wanted = ", ".join(others) or "none"
            raise ValueError(
                f"optimizer.also describes the optimizers beside the first; {self.model.system} has: {wanted}"
            )
        return self

    def optimizer_of(self, name: str) -> tuple[OptimizerChoice, float | None]:
        """What the config says of the optimizer ``name``, and to what norm its gradients are clipped."""
        if name == type(self.model).optimizers[0]:
            return self.optimizer, self.trainer.grad_clip
        second = self.optimizer.also[name]
        return second, second.grad_clip

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


# What a run may change without becoming another run: how long and how often (budget), and what depends on the machine (host).
BUDGET_KEYS = (
    "max_steps", "log_every", "validate_every", "validate_batches", "save_every", "sample_every", "keep", "hang_seconds", "rollback",
    "profile",
)  # fmt: skip
HOST_KEYS = {
    "trainer": ("micro_batch", "activation_checkpointing", "strategy", "deepspeed", "compile", "deterministic"),
    "data": ("workers",),
}


def identity_of(config: RunConfig, data_identity: str) -> str:
    """The 8 hex digits that name a run: sha256 over the canonical JSON of config and data, budget and host left out.

    What has its default value is left out, too: a key that the project gets later makes no run another one.
    """
    facts = config.model_dump(mode="json", exclude_defaults=True)
    for key in BUDGET_KEYS:
        facts["trainer"].pop(key, None)
    for section, keys in HOST_KEYS.items():
        for key in keys:
            facts[section].pop(key, None)
    canonical = json.dumps({"config": facts, "data": data_identity}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """``{"optimizer.lr": (old, new), ...}`` for every leaf that differs."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    keys = sorted(before.keys() | after.keys())
    return {k: (before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)}


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from ``path``; UserError where it is unreadable or not a mapping."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of sections, not {type(tree).__name__}.")
    return tree


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` on top of ``below``: mappings are merged key by key, everything else is replaced."""
    tree = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if both else value
    return tree


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``a.b=value`` of ``--set`` applied; the value is read as YAML."""
    tree = json.loads(json.dumps(tree))
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise UserError(f"--set takes key=value, not '{text}'; for example --set optimizer.lr=0.0003.")
        *parents, leaf = path.strip().split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {text}: '{name}' is a value, not a section.")
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: the value is not valid YAML.") from error
    return tree


def parse_config(tree: dict[str, Any], model_class: type[ModelSection], where: str) -> RunConfig:
    """Validate a tree against ``model_class`` for its ``model:`` section.

    Raises UserError with one sentence a problem: unknown keys with the nearest valid one, wrong types with what was expected.
    """
    return parse_section(tree, _with_model(model_class), where)


def parse_section(tree: dict[str, Any], kind: type[S], where: str) -> S:
    """Validate a tree against any section; raises UserError as ``parse_config`` does."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(e, kind, where) for e in error.errors())) from None


@functools.cache
def _with_model(model_class: type[ModelSection]) -> type[RunConfig]:
    class Config(RunConfig):
        model: model_class  # type: ignore[valid-type]

    Config.__name__ = "RunConfig"
    return Config


def _sentence(error: Any, root: type[BaseModel], where: str) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(root, path[:-1])
        elsewhere = [key for key in _all_keys(root) if key.rpartition(".")[2] == path[-1]]
        hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else nearest(path[-1], valid)
        return f"{where}: unknown key '{name}'.{hint} Valid keys here: {', '.join(valid)}."
    if error["type"] == "missing":
        return f"{where}: '{name}' is missing; set it in the file or with --set {name}=..."
    message = error["msg"].removeprefix("Value error, ")
    shown = f" (got {error['input']!r})" if not isinstance(error["input"], dict | BaseModel) else ""
    return f"{where}: '{name}': {message[:1].lower()}{message[1:]}{shown}." if name else f"{where}: {message}{shown}."


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key below a section, dotted."""
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _all_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _valid_keys(root: type[BaseModel], path: list[str]) -> list[str]:
    node: Any = root
    for part in path:
        node = node.model_fields[part].annotation
        if not isinstance(node, type):  # a section that may be left out: Section | None
            node = next(kind for kind in get_args(node) if kind is not type(None))
    return sorted(node.model_fields)
