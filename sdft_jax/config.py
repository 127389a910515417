"""Configuration: frozen dataclasses, filled from a preset, a YAML file and `key=value` overrides.

Everything is validated before any work begins; an unknown or ill-typed key stops with its name, the
file it stands in and the nearest key that exists. Instances are hashable and hold no arrays.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sdft_jax.errors import SdftError
from sdft_jax.overrides import merge, parse_override, read_yaml
from sdft_jax.presets import PRESETS
from sdft_jax.rules import Rules

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """Which checkpoint, and in which number formats."""

    path: str = "mini"
    """Hugging Face directory (config.json, *.safetensors, tokenizer); `mini` is the embedded model."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Master parameters and optimizer state. bfloat16 halves the memory; at learning rate 1e-5 only
    about 15 % of the weights then change in a step."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Activations and matrix products. Softmax, divergences and reductions are float32 regardless."""
    remat: Literal["none", "full", "dots", "dots_no_batch", "hidden"] = "full"
    """What the backward pass recomputes: nothing; each layer; all but matrix products; all but those without
    batch dimensions; all but what attention read and the feed-forward's hidden activations."""


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Where demonstrations come from and how they become token batches."""

    path: str = "mini"
    """JSONL or Parquet file, Hugging Face dataset directory or name, `tfds:NAME`, or `mini:SKILL` of the
    embedded world; all but files may end in `:SPLIT`."""
    split: str = "train"
    """Split of a Hugging Face or TFDS dataset."""
    prompt: str = "prompt"
    """Field with the prompt: a string, or chat messages ending with the user's."""
    demonstration: str = "demonstration"
    """Field with the demonstration: a string, or a list of strings that are joined by newlines."""
    answer: str = "answer"
    """Field that the task scores against; needed for evaluation only."""
    system: str = "system"
    """Field with a system prompt; rows without it have none."""
    template: str = "reference"
    """Teacher prompt: `reference`, or a text (or `file:PATH`) with $question and $demonstration."""
    template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Extra arguments of the tokenizer's chat template, such as enable_thinking."""
    max_prompt: Positive = 1024
    """Most tokens of a student prompt."""
    max_teacher_prompt: Positive = 2048
    """Most tokens of a teacher prompt: it holds the question and the demonstration."""
    overlong: Literal["drop", "error"] = "drop"
    """What happens to a row over a limit: dropped and counted, or refused. Nothing is ever cut."""
    prompt_buckets: tuple[Positive, ...] = ()
    """Padded prompt lengths, one compilation each; empty: one, the longest prompt that is kept."""
    teacher_buckets: tuple[Positive, ...] = ()
    """The same for teacher prompts."""
    limit: Positive | None = None
    """Use only the first rows."""


@dataclass(frozen=True, config=_STRICT)
class SamplingConfig:
    """How the student samples its completions."""

    max_new_tokens: Positive = 1024
    """Most tokens of a completion."""
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_k: Count = 0
    """Only the k likeliest tokens; 0 is off."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest set of tokens with this much probability; 1 is off."""
    min_p: Share = 0.0
    """Least probability of a token, as a share of the likeliest one's; 0 is off."""


@dataclass(frozen=True, config=_STRICT)
class TeacherConfig:
    """Which weights teach. Sources: paper section 3 and Figure 8."""

    schedule: Literal["ema", "frozen", "live", "periodic"] = "ema"
    """ema: moving average of the student after every step; frozen: the initial weights; live: the
    student itself (no copy); periodic: a copy of the student every `every` steps."""
    rate: Share = 0.01
    """EMA: teacher <- (1 - rate) * teacher + rate * student."""
    every: Positive = 100
    """Steps between copies of the periodic schedule."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the copy; an EMA at rate 0.01 then makes 9-34 % of its motion."""


@dataclass(frozen=True, config=_STRICT)
class DivergenceConfig:
    """How far the student's next-token distribution S is from the teacher's T."""

    alpha: Share = 1.0
    """0: forward KL(T||S); 1: reverse KL(S||T); between: generalised Jensen-Shannon divergence
    alpha KL(T||M) + (1-alpha) KL(S||M) with M = (1-alpha) S + alpha T."""
    support: Literal["full", "teacher", "student", "union", "sampled"] = "full"
    """Tokens summed over: the whole vocabulary, the top-k of a role, of both, or only the sampled one."""
    top_k: Positive = 100
    """How many tokens, for the supports teacher, student and union."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """What becomes of the mass outside the top-k."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Both roles' logits are divided by it."""
    chunk: Positive = 1024
    """Tokens per device whose logits exist at one time."""

    def __post_init__(self):
        if self.support == "sampled" and self.alpha != 1:
            raise SdftError(
                f"divergence.support=sampled estimates the reverse KL only: set divergence.alpha=1 (it is "
                f"{self.alpha}), or another divergence.support."
            )


@dataclass(frozen=True, config=_STRICT)
class ObjectiveConfig:
    """Which tokens count, and how they add up."""

    skip_tokens: Count = 0
    """First completion tokens without loss; 3 in the released code, against leaked teacher phrases."""
    truncated: Literal["keep", "mask"] = "keep"
    """Completions that reached max_new_tokens without EOS."""
    aggregation: Literal["sequence", "token", "sum"] = "sequence"
    """Mean over tokens, then over sequences; mean over all tokens; or the sum."""
    importance: Literal["log", "token", "sequence"] = "log"
    """Ratio of trainer to sampler probability: logged only, applied to each token, or its mean applied
    to the whole sequence (released code)."""
    importance_cap: NonNegative = 2.0
    """Largest ratio that is applied."""


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """AdamW with a schedule and clipping by global norm."""

    learning_rate: NonNegative = 1e-5
    """Its highest value, after the warm-up."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Decay after the warm-up: to 0 over the rest of the run, or none."""
    warmup: NonNegative = 10
    """Steps of linear warm-up; a number below 1 is a share of all steps."""
    clip: NonNegative = 1.0
    """Largest global gradient norm; 0 is off."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled decay."""
    b1: Decay = 0.9
    """AdamW's decay of the first moment."""
    b2: Decay = 0.999
    """AdamW's decay of the second moment."""
    eps: NonNegative = 1e-8
    """AdamW's term in the denominator."""
    freeze: tuple[str, ...] = ()
    """Regular expressions, searched in paths such as layers/q, for parameters that do not train; `q$` is not
    q_norm."""


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """The outer loop."""

    method: Literal["sdft", "sft"] = "sdft"
    """sdft, or sft: cross-entropy of the demonstrations given the student's prompt."""
    batch_size: Positive = 32
    """Prompts per update, one completion each."""
    micro_batch: Positive | None = None
    """Rows whose activations exist at one time; None is the whole batch."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Passes over the data; ignored when `steps` is set."""
    steps: Positive | None = None
    """Updates in all; None goes by `epochs`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of data order and sampling."""
    log_every: Positive = 1
    """Steps between lines of metrics."""
    eval_every: Count = 0
    """Steps between evaluations; 0: before and after the run only."""
    save_every: Count = 100
    """Steps between checkpoints; 0: only at the end."""
    rollouts_every: Count = 50
    """Steps between samples of rollouts in the run directory; 0 is never."""
    rollouts_rows: Positive = 4
    """Rollouts in such a sample."""
    phases_every: Count = 100
    """Steps between timings of sampling by itself, from which the speed of each phase follows; 0 is never."""
    stop_at: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop once the accuracy on eval.path reaches this (then test on other rows); None is never."""


@dataclass(frozen=True, config=_STRICT)
class EvalConfig:
    """How accuracy is measured: greedily, on rows like those of `data`."""

    path: str | None = None
    """Held-out rows of the new skill; None measures nothing of it."""
    prior: str | None = None
    """Rows of old skills, which should not be forgotten."""
    task: Literal["exact", "contains", "choice", "tooluse", "mini"] = "exact"
    """How an answer is scored; each is documented in `tasks/`."""
    batch_size: Positive = 64
    """Prompts answered at one time."""
    limit: Positive | None = None
    """Evaluate only the first rows."""
    max_new_tokens: Positive | None = None
    """None: as in sampling."""
    teacher: bool = True
    """Also measure the model with the demonstration in context: the ceiling of what it can teach."""


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    """Devices along each mesh axis; one may be -1 for whatever is left."""

    data: int = 1
    """Batch split, parameters whole."""
    fsdp: int = -1
    """Batch and parameters split."""
    tensor: int = 1
    """Heads, feed-forward and vocabulary split."""


@dataclass(frozen=True, config=_STRICT)
class CheckpointConfig:
    """What is kept in `output`/checkpoints."""

    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: Count = 1
    """Checkpoints kept besides, best by evaluated accuracy; needs train.eval_every."""


@dataclass(frozen=True, config=_STRICT)
class ReportConfig:
    """Where metrics go besides the console and metrics.jsonl."""

    tensorboard: bool = False
    """Event files in `output`/tensorboard."""
    wandb: str | None = None
    """Name of a W&B project; needs `pip install wandb`."""


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One run."""

    preset: Literal["sdft", "official"] = "sdft"
    """Where the defaults come from: the recommended settings, or those of the released code."""
    output: str = "runs/sdft"
    """Directory of the run: checkpoints, metrics, rollouts, plots and the exported model."""
    baseline: bool = False
    """Also train SFT on the same data, and report it beside SDFT."""
    baseline_learning_rate: NonNegative | None = None
    """SFT's own learning rate; None: the same."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    divergence: DivergenceConfig = Field(default_factory=DivergenceConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    sharding: Rules = Field(default_factory=Rules)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    def __post_init__(self):
        if self.baseline and self.train.method == "sft":
            raise SdftError(
                "baseline=true trains SFT beside another method: set it to false, or train.method."
            )


_ADAPTER = TypeAdapter(Config)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Config from a YAML file and overrides such as `train.batch_size=16`, on top of its preset.

    Raises SdftError naming the file or override, the key and the remedy.
    """
    tree = {} if path is None else read_yaml(Path(path))
    for override in overrides:
        tree = merge(tree, parse_override(override))
    preset = tree.get("preset", "sdft")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise SdftError(f"preset={preset!r}: there is no such preset; choose one of {', '.join(PRESETS)}.")
    return from_dict(merge(PRESETS[preset], tree), str(path or "overrides"))


def from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """Config from nested dictionaries; `source` is named in errors."""
    _refuse_unknown(Config, tree, source)
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SdftError(f"{source}: {key}={first['input']!r}: {first['msg'].lower()}{more}.") from None


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries, ready for YAML or JSON; `from_dict` reads them back."""
    return _ADAPTER.dump_python(config, mode="json")


def describe(config: Config) -> list[tuple[str, str, str]]:
    """(key, value, default) of every key that differs from the `sdft` defaults."""
    flat, default = dict(_flatten(to_dict(config))), dict(_flatten(to_dict(Config())))
    return [(key, str(flat[key]), str(default[key])) for key in flat if flat[key] != default[key]]


def keys() -> list[str]:
    """All dotted keys, in order of declaration."""
    return [key for key, _ in _flatten(to_dict(Config()))]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, dict) and key != "template_kwargs"
        pairs += _flatten(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return pairs


def _refuse_unknown(section: Any, tree: Mapping[str, Any], source: str, prefix: str = "") -> None:
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in tree.items():
        if key not in fields:
            near = _nearest(prefix + str(key))
            hint = f"did you mean {near}?" if near else f"known are {', '.join(fields)}."
            raise SdftError(f"{source}: unknown key {prefix}{key}; {hint}")
        nested = getattr(Config() if section is Config else None, key, None)
        if dataclasses.is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise SdftError(f"{source}: {key}={value!r}: expected keys and values below it.")
            _refuse_unknown(type(nested), value, source, f"{key}.")
        elif isinstance(value, bool) and fields[key].type != "bool":  # pydantic would read it as 0 or 1
            raise SdftError(f"{source}: {prefix}{key}={value}: true and false mean nothing here.")


def _nearest(unknown: str) -> str | None:
    """The known key that looks most like this one: a section, a dotted key or the last part of one."""
    known = keys()
    sections = [] if "." in unknown else [field.name for field in dataclasses.fields(Config)]
    if near := difflib.get_close_matches(unknown, sections + known, n=1, cutoff=0.7):
        return near[0]
    last = {key.rpartition(".")[2]: key for key in reversed(known)}
    near = difflib.get_close_matches(unknown.rpartition(".")[2], last, n=1, cutoff=0.7)
    return last[near[0]] if near else None
