"""The sections of a configuration: frozen dataclasses, each with its keys, defaults and what they mean.

The string under a field is its documentation: `sdft train --help` and configs/README.md print it.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from sdft_jax.config.methods import MethodName
from sdft_jax.errors import SdftError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Which checkpoint, and in which number formats."""

    path: str = "mini"
    """Hugging Face directory (config.json, *.safetensors, tokenizer) or Hub name; `mini` is the embedded
    model, `mini:NAME` another one."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Master parameters and optimizer state. bfloat16 halves the memory; at learning rate 1e-5 only
    about 15 % of the weights then change in a step."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Activations and matrix products. Softmax, divergences and reductions are float32 regardless."""
    remat: Literal["none", "full", "dots", "dots_no_batch", "hidden"] = "full"
    """What the backward pass recomputes: `none` nothing; `full` each layer; `dots` all but matrix products;
    `dots_no_batch` all but those without batch dimensions; `hidden` all but what attention read and the
    feed-forward's hidden activations."""
    attention: Literal["auto", "splash", "cudnn", "xla"] = "auto"
    """Kernel of the attention over whole sequences; `auto`: splash on TPU, cuDNN on NVIDIA GPUs where the
    compute dtype is bfloat16, plain XLA elsewhere."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Where demonstrations come from and how they become token batches."""

    path: str = "mini"
    """JSONL or Parquet file, Hugging Face dataset directory or name, `tfds:NAME`, or `mini:SKILL` of the
    embedded worlds (sdft_jax/mini/rows.py lists them); all but files may end in `:SPLIT`."""
    split: str = "train"
    """Split of a Hugging Face or TFDS dataset."""
    prompt: str = "prompt"
    """Field with the prompt: a string, or chat messages ending with the user's."""
    demonstration: str = "demonstration"
    """Field with the demonstration: a string, or a list of strings that are joined by newlines."""
    context: str | None = None
    """Field that the teacher is shown, a text or a list of texts; None: the demonstration."""
    text: str = "text"
    """Field with the raw text that method cpt trains on."""
    general: str | None = None
    """Prompts of general use, of the same kinds of source as `path`, on which method reinvoke distills the
    base model."""
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
    """Most tokens of a teacher prompt, which holds question and demonstration; of a raw text, with cpt."""
    overlong: Literal["drop", "error"] = "drop"
    """What happens to a row over a limit: dropped and counted, or refused. Nothing is ever cut."""
    prompt_buckets: tuple[Positive, ...] = ()
    """Padded prompt lengths, one compilation each; empty: one, the longest prompt that is kept."""
    teacher_buckets: tuple[Positive, ...] = ()
    """The same for teacher prompts."""
    sorted_batches: Positive = 1
    """Batches whose rows are dealt out by length, so that rows of like length share one and buckets pad them
    less; 1 leaves the order random."""
    limit: Positive | None = None
    """Use only the first rows."""


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
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


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The outer loop."""

    method: MethodName = "sdft"
    """sdft; sft: cross-entropy of the demonstrations; dft: that, weighted by each token's probability;
    reinvoke: sft, then on-policy distillation of the base model on data.general; offline and offline_kl:
    cross-entropy and divergence on samples of the initial, demonstration-conditioned teacher; cpt: language
    modelling of data.text; joint: sft on all stages at once; oracle: no training, the demonstration in
    context. Sources: sdft_jax/config/methods.py."""
    reinvoke: Share = 0.5
    """Method reinvoke: share of the steps, the last ones, that distill the base model."""
    batch_size: Positive = 32
    """Prompts per update, one completion each."""
    micro_batch: Positive | None = None
    """Rows whose activations exist at one time; None is the whole batch."""
    completion_buckets: tuple[Positive, ...] = ()
    """Lengths below sampling.max_new_tokens at which learning is compiled too: the shortest that holds a
    step's longest completion is used, the same result for less work."""
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
    """Stop once an evaluation's score reaches this; None is never. The score is the accuracy on
    eval.validation, or on eval.path without one (then test on other rows)."""
    patience: Count = 0
    """Stop after this many evaluations in a row without a better score; 0 is never."""
    max_kl: NonNegative | None = None
    """Stop once KL(model || base) on eval.prior exceeds this, in nats per token, and choose no such
    checkpoint; None is never."""
    choose: Literal["last", "best"] = "last"
    """Which checkpoint becomes the run's model: the last, or that of the best score. Never by the loss."""


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """How accuracy is measured: greedily, on rows like those of `data`."""

    path: str | None = None
    """Held-out rows of the new skill; None measures nothing of it."""
    validation: str | None = None
    """Rows of the new skill on which stopping and choosing go by; None: eval.path itself."""
    prior: str | None = None
    """Rows of old skills, which should not be forgotten."""
    base: str | None = None
    """Model from which the distance is measured; None: model.path."""
    task: Literal["exact", "contains", "choice", "tooluse", "mini", "storms"] = "exact"
    """How an answer is scored; each is documented in `tasks/`."""
    batch_size: Positive = 64
    """Prompts answered at one time."""
    limit: Positive | None = None
    """Evaluate only the first rows."""
    max_new_tokens: Positive | None = None
    """None: as in sampling."""
    overlap: Literal["error", "allow"] = "error"
    """Where an evaluation asks prompts that are trained on: refused with their count, or allowed."""
    teacher: bool = True
    """Also measure the model with the demonstration in context: the ceiling of what it can teach."""


@dataclass(frozen=True, config=STRICT)
class ContinualConfig:
    """What one model goes through in turn; read by `sdft continual` only."""

    stages: tuple[dict[str, Any], ...] = dataclasses.field(default=(), hash=False)
    """In order; each has a `name` and the keys in which it differs from the rest of the file, such as
    {name: tools, data: {path: FILE}, eval: {path: FILE}}."""
    suites: tuple[dict[str, Any], ...] = dataclasses.field(default=(), hash=False)
    """Further questions that are measured with everything else; each has a `name`, a `path` and other keys of
    the eval section."""
    methods: tuple[MethodName, ...] = ()
    """Methods to compare, one sequence each; empty: train.method."""
    learning_rates: tuple[NonNegative, ...] = ()
    """Learning rates to compare, for every method the same; empty: optimizer.learning_rate."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = ()
    """Seeds of data order and sampling; empty: train.seed."""


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Devices along each mesh axis; one may be -1 for whatever is left."""

    data: int = 1
    """Batch split, parameters whole."""
    fsdp: int = -1
    """Batch and parameters split."""
    tensor: int = 1
    """Heads, feed-forward and vocabulary split."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What is kept in `output`/checkpoints."""

    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: Count = 1
    """Checkpoints kept besides, best by evaluated accuracy; needs train.eval_every."""


@dataclass(frozen=True, config=STRICT)
class ProfileConfig:
    """A trace of a few steps, to see where their time goes."""

    steps: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None
    """FIRST:LAST, such as 10:13: steps whose XProf trace is written into `output`/profile; None is never."""

    def __post_init__(self):
        if self.bounds and not 0 < self.bounds[0] <= self.bounds[1]:
            raise SdftError(f"profile.steps={self.steps}: give FIRST:LAST, counted from 1, such as 10:13.")

    @property
    def bounds(self) -> tuple[int, int] | None:
        """First and last step."""
        if self.steps is None:
            return None
        first, _, last = self.steps.partition(":")
        return int(first), int(last)


@dataclass(frozen=True, config=STRICT)
class DebugConfig:
    """What is worth its price only when something is wrong."""

    nans: bool = False
    """Stop at the operation that first gives a NaN, and name it. The state exists twice then, and steps that
    give one are run again operation by operation."""


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """Where metrics go besides the console and metrics.jsonl."""

    tensorboard: bool = False
    """Event files in `output`/tensorboard."""
    wandb: str | None = None
    """Name of a W&B project; needs `pip install wandb`."""
