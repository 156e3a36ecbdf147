"""The recipe: everything that a run depends on, as YAML. Unknown keys are errors with a suggestion.

A path in a recipe is looked up next to the recipe first, then in the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sentei.accel.settings import Moments, Refitted, Select, Settings, Slices, Targets
from sentei.budget import as_count
from sentei.errors import InputError
from sentei.files import JSONError, write_text
from sentei.memory import parse_bytes
from sentei.plan import Budget, Refine, Storage, Weigh
from sentei.protect import Protect
from sentei.schema import LARGEST, Count, Positive, Seed, load_yaml, parse, read_yaml


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(_Section):
    """What the model is for. `general`: the demo texts and tasks, unless `data` and `prove` name others."""

    preset: Literal["general"] = "general"


class Measure(_Section):
    """How the calibration data are read.

    Attributes:
        tokens: at most this many, rounded down to whole windows.
        window: tokens per window.
        gradient_tokens: how many of them the gradient pass reads; 0 leaves it out.
        own_text: tokens that the model writes itself, read beside `data`, at most as many as of these; 0: none.
        keep_grams: whether the profile keeps its Gram matrices. A run whose plan needs them keeps them anyway.
    """

    tokens: int = Field(default=131072, ge=2, le=LARGEST)
    window: int = Field(default=1024, ge=2, le=LARGEST)
    gradient_tokens: Count = 8192
    own_text: Count = 32768
    keep_grams: bool = False


class Prune(_Section):
    """A method from `sentei methods`, or its parts one by one.

    Attributes:
        protect: what is not thinned: `first:4,last:2,attention:1`, or the same as keys.
        weigh: how the losses of different parts are compared: none, gradient, energy, share or standardise.
    """

    method: str = "auto"
    score: str | None = None
    allocation: str | None = None
    compensation: str | None = None
    protect: Protect | None = None
    weigh: Weigh | None = None
    storage: Storage = "factors"
    refine: Refine = "none"


class Prove(_Section):
    """What dense and pruned are compared on.

    Attributes:
        texts: for perplexity: files, `hf:` names, or `demo`.
        tasks: multiple choice: JSONL files, names that lm-evaluation-harness knows, or `demo`.
        window: tokens per window of text.
        windows: at most this many windows of each text.
        limit: at most this many rows of each task.
        speed: whether to time prefill and decoding.
    """

    texts: list[str] = ["demo"]
    tasks: list[str] = ["demo"]
    window: int = Field(default=1024, ge=2, le=LARGEST)
    windows: Positive | None = None
    limit: Positive | None = None
    speed: bool = True

    @field_validator("texts", "tasks", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Recover(_Section):
    """How the pruned model is healed; a recipe without this section leaves it as it was cut.

    Attributes:
        pool: candidates: a file or directory that `sentei select` reads, an `hf:` name, or `demo`.
        select: a strategy from `sentei methods`; `all` trains on the whole pool.
        rows: at most so many candidates of the pool are read, drawn by the seed.
        budget: how much is selected: a share of the pool (0.2), rows (500), or tokens ("40000 tokens").
        tune: an adapter from `sentei methods`.
        budget_params: trainable parameters: "1%" of the block params, a share, or a number.
        criterion: by which `lora+sparse` and `shira-gradient` choose what is trained.
        mask: `static`, or `grow`: sparse entries move while training.
        loss: from the text (`sft`), the dense model (`kd`) or both; default: both.
        tokens: how many are trained on, prompts included.
        batch_tokens: of a step; smaller ones make more steps of few tokens.
        learning_rate: the highest; default: that of the adapter.
        target: texts of the wanted capability, a pool of any format.
        strict: a recovery that leaves the model no nearer to the dense one, so that the cut model is kept, ends the run
            with exit code 3.
        languages: that rows may be in, such as [en, ja]; default: those of 15 % of the pool or more.
        strict_rows: refuse a pool with a bad row; by default such rows are skipped and counted.
        watts: drawn by the machine, for an estimate of the energy.
        price_per_hour: of the machine, for an estimate of the cost.
        currency: of the price.
    """

    pool: str = "demo"
    rows: Annotated[int, Field(ge=2, le=LARGEST)] | None = None
    select: str = "auto"
    budget: int | float | str = "0.2"
    tune: str = "lora+sparse"
    budget_params: int | float | str = "1%"
    criterion: str = "gradient"
    mask: str = "static"
    loss: Literal["sft", "kd", "both"] | None = None
    tokens: Positive = 200_000
    batch_tokens: Annotated[int, Field(ge=2, le=LARGEST)] = 2048
    learning_rate: float | None = Field(default=None, gt=0)
    target: str | None = None
    languages: list[str] = []
    strict_rows: bool = False
    strict: bool = False
    watts: float | None = Field(default=None, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0)
    currency: str = "EUR"

    @field_validator("languages", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [code for part in value.split(",") if (code := part.strip())] if isinstance(value, str) else value


class Accel(_Section):
    """Cutting and training in turns, instead of one cut; see docs/recovery.md. What is left out is as in `Settings`.

    Attributes:
        pool: what is trained on: a file or directory that `sentei select` reads, an `hf:` name, or `demo`.
        teacher: of losses that need one; default: the model itself.
        strict_rows: refuse a pool with a bad row; by default such rows are skipped and counted.
    """

    pool: str = "demo"
    stages: Annotated[int, Field(ge=1, le=1000)] = Settings.stages
    tokens: Annotated[Positive, BeforeValidator(as_count)] = Settings.tokens
    targets: Targets = Settings.targets
    slices: Slices = Settings.slices
    select: Select = Settings.select
    train: str = Settings.train
    budget_params: int | float | str = Settings.budget_params
    loss: str = Settings.loss
    teacher: str | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    rewarm: Count = Settings.rewarm
    moments: Moments = Settings.moments
    refitted: Refitted = Settings.refitted
    batch_tokens: Annotated[int, Field(ge=2, le=LARGEST)] | None = Settings.batch_tokens
    length: Annotated[int, Field(ge=2, le=LARGEST)] = Settings.length
    epochs: Positive = Settings.epochs
    calibration: Annotated[int, Field(ge=2, le=LARGEST), BeforeValidator(as_count)] = Settings.calibration
    gradient_tokens: Count = Settings.gradient_tokens
    window: Annotated[int, Field(ge=2, le=LARGEST)] = Settings.window
    strict_rows: bool = False

    def settings(self, seed: int) -> Settings:
        """The same as the loop takes it."""
        return Settings(seed=seed, **self.model_dump(exclude={"pool", "teacher", "strict_rows"}))


class Ship(_Section):
    """Where the model goes at last; a recipe without this section leaves it as transformers reads it.

    Attributes:
        to: routes of `sentei export`. The plan must have their sizes: see `budget.target_engine`.
        dtype: `auto` (what config.json declares), F32, F16, BF16, or what else the routes know (`Q8_0` for gguf).
        speed: whether to time it against the dense model, exported in the same way, where an engine is installed.
    """

    to: list[str] = Field(min_length=1)
    dtype: str = "auto"
    speed: bool = True

    @field_validator("to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Scaled(_Section):
    """What `minutes` made of a recipe; sentei writes it into the recipe of the run.

    Attributes:
        minutes: that were to be met.
        tokens_per_second: of the dense model's forward pass, when the run began.
        wanted: the numbers that became smaller, as they were.
        asked: sha256 of the recipe that was given.
    """

    minutes: float
    tokens_per_second: float
    wanted: dict[str, int | float | str]
    asked: str


class Recipe(_Section):
    """A whole run.

    Attributes:
        minutes: how long it may take, about, on the machine where it begins: its tokens, windows and rows are scaled
            down to that, see `sentei.scaling`; left out: what it says is done.
        fitted: the outcome.
        dtype: that models are computed in: `auto` (what is fast on the device), `stored` (as the checkpoint is), or a
            name. A run keeps what it was started with, wherever it goes on.
        device: `auto` (a CUDA GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1` or `mps`. No result hangs on
            it but for rounding, so a run may go on on another one.
        memory: that the run may hold, like "4GB": every stage then reads models block by block, and one that cannot is
            refused before the start; left out: models are in memory.
    """

    model: str
    task: Task = Task()
    data: str = "demo"
    budget: Budget
    prune: Prune = Prune()
    measure: Measure = Measure()
    prove: Prove = Prove()
    accel: Accel | None = None
    recover: Recover | None = None
    ship: Ship | None = None
    dtype: Literal["auto", "stored", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    memory: str | None = None
    trust_remote_code: bool = False
    seed: Seed = 0
    minutes: float | None = Field(default=None, gt=0)
    fitted: Scaled | None = None

    @field_validator("memory", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> Any:
        if value is not None:
            try:
                parse_bytes(str(value))
            except InputError as error:
                raise ValueError(str(error)) from None
        return value if value is None else str(value)

    @model_validator(mode="after")
    def _one_training(self) -> Recipe:
        if self.accel is not None and self.recover is not None:
            raise ValueError("accel trains between its cuts, and recover after one: give one of the two sections")
        return self

    @property
    def limit(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Recipe:
        """Reads a recipe; `overrides` are `a.b=c` with c in YAML.

        Raises:
            InputError: missing, not YAML (line and column), an unknown key (with the nearest), or a value out of range.
        """
        path = Path(path)
        value = read_yaml(path, "a recipe is a YAML file, see recipes/demo.yaml", "`model:` and `budget:`")
        for override in overrides:
            _override(value, override)
        return parse(cls, value, str(path))._with_paths(path.absolute().parent)

    def resolved(self) -> Recipe:
        """The recipe with local paths made absolute, from the working directory."""
        return self._with_paths(Path.cwd())

    def _with_paths(self, folder: Path) -> Recipe:
        """Local paths made absolute, so that the recipe means the same from everywhere."""

        def find(source: str) -> str:
            for place in (folder, Path.cwd()):
                if os.path.exists(place / source):  # of a name too long for a file: no
                    return str(place / source)
            return source

        prove = {name: [find(source) for source in getattr(self.prove, name)] for name in ("texts", "tasks")}
        recover = self.recover
        if recover is not None:
            target = None if recover.target is None else find(recover.target)
            recover = recover.model_copy(update={"pool": find(recover.pool), "target": target})
        accel = self.accel
        if accel is not None:
            teacher = None if accel.teacher is None else find(accel.teacher)
            accel = accel.model_copy(update={"pool": find(accel.pool), "teacher": teacher})
        return self.model_copy(
            update={
                "model": find(self.model),
                "data": find(self.data),
                "prove": self.prove.model_copy(update=prove),
                "accel": accel,
                "recover": recover,
            }
        )

    def sources(self) -> list[str]:
        """What it reads: paths, and names of models and data."""
        recover = self.recover
        recovery = [] if recover is None else [recover.pool, *([recover.target] if recover.target else [])]
        accel = self.accel
        training = [] if accel is None else [accel.pool, *([accel.teacher] if accel.teacher else [])]
        return [self.model, self.data, *self.prove.texts, *self.prove.tasks, *recovery, *training]

    def dump(self) -> str:
        """The resolved recipe as YAML, defaults and all."""
        value = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Writes the resolved recipe."""
        write_text(path, self.dump())


def _override(value: dict[str, Any], override: str) -> None:
    """Sets one `a.b=c` in place."""
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last or not all(sections):
        raise InputError(f"--set {override!r}: expected key=value, for example budget.sparsity=0.3")
    for section in sections:
        inner = value.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {section!r} is {inner!r}, it has no keys")
        value = inner
    try:
        value[last] = load_yaml(text)
    except JSONError as error:
        raise InputError(f"--set {override!r:.200}: {text!r:.200} is not a YAML value: {error}") from error
