"""The sections of a configuration: frozen dataclasses with keys, defaults and documentation.

The docstring under a field is its documentation in `sdft train --help` and configs/README.md.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Annotated, Any, Literal

from pydantic import Field

from sdft_jax.config.methods import MethodName
from sdft_jax.config.section import (
    Count,
    Decay,
    Integer,
    NonNegative,
    Positive,
    PositiveNumber,
    PositiveShare,
    Rows,
    Seed,
    Share,
    Temperature,
    Tokens,
    section,
)
from sdft_jax.errors import SdftError


@section("model")
class ModelConfig:
    """The checkpoint and its number formats."""

    path: str = "mini"
    """Hugging Face directory (config.json, *.safetensors, tokenizer) or Hub name; `mini` for the embedded
    model, `mini:NAME` for another built-in model."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the master parameters and the optimizer state. bfloat16 halves their memory, but at learning
    rate 1e-5 only about 15 % of the weights then change in a step, unless optimizer.rounding=stochastic."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of activations and matrix products. Softmax, divergences and reductions are always float32."""
    remat: Literal["none", "full", "dots", "dots_no_batch", "hidden"] = "full"
    """Rematerialization: the part of a layer that the backward pass recomputes. `none`: nothing; `full`: the
    whole layer; `dots`: all but matrix products; `dots_no_batch`: all but matrix products without batch
    dimensions; `hidden`: all but the output of attention and the feed-forward's hidden activations."""
    attention: Literal["auto", "splash", "cudnn", "xla"] = "auto"
    """Kernel of the attention over whole sequences. `auto`: splash on TPU, cuDNN on NVIDIA GPUs if the
    compute dtype is bfloat16, plain XLA otherwise."""


Quantization = Literal["int8", "nf4"]
"""Format of quantized weights (`models.quantize`)."""

LAYERS = "layers"
"""The target of adapters that stands for the projections of all layers."""


@section("lora")
class LoraConfig:
    """Low-rank adapters (LoRA) of a frozen base model. Training then changes the adapters only.

    The base has the dtype `model.compute_dtype`, the adapters and their optimizer state
    `model.param_dtype`.
    """

    rank: Count = 0
    """Rank of the adapters; 0 trains the model itself, without adapters."""
    alpha: PositiveNumber = 16.0
    """Strength of the adapters: their product is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply the adapters' product by alpha / sqrt(rank) instead (rsLoRA; arXiv 2312.03732)."""
    targets: tuple[str, ...] = (LAYERS,)
    """Adapted matrices: `layers`, which stands for every projection of the model's layers (attention, delta
    nets, feed-forward; no routers, experts and embeddings for each layer) except those to one number per
    head; or names, or regular expressions that match a whole name, of q, k, v, o, gate, up, down, embed (the
    lookup of tokens) and head (the logits), also if embedding and head are one matrix; of gated delta nets,
    delta_qkv, delta_z, delta_o, and delta_b and delta_a, which `layers` excludes; and of Phi-3, qkv (also q,
    k and v together) and gate_up (also gate and up together)."""
    adapter: str | None = None
    """PEFT adapter directory to start from, of the same rank, alpha and targets; None for new adapters, with
    which the model equals its base."""
    quantize: Quantization | None = None
    """Format of the projections of the base (QLoRA): int8 (8 bits per weight), nf4 (4.25 bits), or None for
    `model.compute_dtype`. All other parameters keep `model.compute_dtype`."""

    def __post_init__(self):
        if self.quantize and not self.rank:
            raise SdftError(
                f"lora.quantize={self.quantize} quantizes the frozen base of adapters, and lora.rank=0 "
                "trains the model itself: set lora.rank, or lora.quantize=null."
            )
        if self.adapter == "":
            raise SdftError("lora.adapter is empty: give the directory of a PEFT adapter, or null.")
        if self.adapter is not None and not self.rank:
            raise SdftError(
                f"lora.adapter={self.adapter} needs the rank of that adapter: set lora.rank to r of its "
                "adapter_config.json."
            )


@section("data")
class DataConfig:
    """The source of demonstrations and their conversion to token batches."""

    path: str = "mini"
    """JSONL (plain, .gz or .zst) or Parquet file, Hugging Face dataset directory or name, `tfds:NAME`, or
    `mini:SKILL` of the built-in tasks (listed in sdft_jax/mini/rows.py). Files and directories may be in a
    bucket. All except files may end in `:SPLIT`."""
    split: str = "train"
    """Split of a Hugging Face or TFDS dataset."""
    prompt: str = "prompt"
    """Field with the prompt: a string, or chat messages that end with a user message."""
    demonstration: str = "demonstration"
    """Field with the demonstration: a string, or a list of strings, which are joined by newlines."""
    demonstrations: str | None = None
    """Field with a list of demonstrations, each like `demonstration`, of which one is drawn in each epoch; a
    row without it has the field `demonstration`. None if every row has one demonstration."""
    context: str | None = None
    """Field with the teacher's context, a string or a list of strings; None for the demonstration."""
    messages: str | None = None
    """Field with a trace, a conversation of which every assistant turn becomes a demonstration; a row without
    it has the fields `prompt` and `demonstration`. None if no row is a trace."""
    tools: str | None = "tools"
    """Field with the JSON schemas of a trace's tools, which the chat template describes to the model; None if
    they are described in a message."""
    text: str = "text"
    """Field with the raw text for method cpt."""
    general: str | None = None
    """Source of general prompts, as in `path`, on which method reinvoke distills the base model."""
    answer: str = "answer"
    """Field with the reference answer; required for evaluation only."""
    system: str = "system"
    """Field with a system prompt; optional in each row."""
    template: str = "reference"
    """Template of the teacher's prompt: `reference`, or a text (or `file:PATH`) with $question and
    $demonstration."""
    template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Additional arguments of the tokenizer's chat template, such as enable_thinking."""
    teacher_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Arguments of the chat template for the teacher's prompt, each in the place of that in `template_kwargs`
    (sdft_jax/data/THINKING.md)."""
    thoughts: Literal["keep", "remove"] = "keep"
    """Treatment of thoughts (<think>...</think>, the marks of Mistral, Gemma 4 and gpt-oss, and fields such
    as reasoning_content of messages) in demonstrations, contexts and earlier assistant turns: keep those that
    the chat template renders, or remove all."""
    max_prompt: Tokens = 1024
    """Maximum length of a student prompt, in tokens."""
    max_teacher_prompt: Tokens = 2048
    """Maximum length of a teacher prompt (question and demonstration), or of a raw text for method cpt, in
    tokens."""
    overlong: Literal["drop", "error"] = "drop"
    """Treatment of rows over a limit: drop and count them, or raise an error. Rows are never truncated."""
    control_tokens: Literal["refuse", "text"] = "refuse"
    """Treatment of the model's control tokens, such as <|im_end|>, in the texts of rows: refuse the row, or
    encode them as plain text."""
    prompt_buckets: tuple[Tokens, ...] = ()
    """Padded prompt lengths in tokens, with one compilation each; empty for one length, that of the longest
    prompt."""
    teacher_buckets: tuple[Tokens, ...] = ()
    """Padded teacher prompt lengths in tokens, as `prompt_buckets`."""
    sorted_batches: Annotated[Positive, Field(le=1024)] = 1
    """Number of consecutive batches whose rows are sorted by length before they are batched, so that buckets
    need less padding; 1 keeps the random order."""
    limit: Positive | None = None
    """Maximum number of rows to read from the start of the source; None for all."""
    check: Positive = 4096
    """Number of rows that are read, checked and tokenized before the first step. If the source has more, they
    are evenly spread over it, and the others are tokenized while they are trained on."""


@section("sampling")
class SamplingConfig:
    """The student's sampling of completions."""

    max_new_tokens: Tokens = 1024
    """Maximum length of a completion, in tokens."""
    temperature: Temperature = 1.0
    """Sampling temperature; 0 is greedy."""
    top_k: Count = 0
    """Number of most likely tokens to sample from; 0 for all."""
    top_p: PositiveShare = 1.0
    """Cumulative probability of the most likely tokens to sample from (nucleus sampling); 1 for all."""
    min_p: Share = 0.0
    """Minimum probability of a token, relative to that of the most likely token; 0 for no minimum."""


@section("teacher")
class TeacherConfig:
    """The teacher's weights (paper, section 3 and Figure 8)."""

    schedule: Literal["ema", "frozen", "live", "periodic"] = "ema"
    """ema: the moving average of the student (with adapters, of their factors), updated after each step;
    frozen: the initial weights; live: the student's own weights (no copy); periodic: a copy of the student's
    weights every `every` steps."""
    rate: Share = 0.01
    """Rate of the EMA per step: teacher <- (1 - rate) * teacher + rate * student."""
    every: Positive = 100
    """Number of steps between copies of the periodic schedule."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the teacher's copy. bfloat16 halves it, but an EMA at rate 0.01 then realizes only 9 to 34 %
    of its updates."""


@section("divergence")
class DivergenceConfig:
    """The divergence of the student's next-token distribution S from the teacher's T."""

    alpha: Share = 1.0
    """Direction. 0: forward KL(T||S); 1: reverse KL(S||T); between: generalized Jensen-Shannon divergence
    alpha KL(T||M) + (1-alpha) KL(S||M) with M = (1-alpha) S + alpha T."""
    support: Literal["full", "teacher", "student", "union", "sampled"] = "full"
    """Tokens to sum over: the whole vocabulary, the top-k of one role or of both, or only the sampled
    token."""
    top_k: Positive = 100
    """Number of tokens k for the supports teacher, student and union."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """Treatment of the probability outside the top-k: count it as one more token (bucket), or remove it
    (renormalise)."""
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    """Divisor of both roles' logits."""
    chunk: Positive = 1024
    """Number of tokens per device whose logits are in memory at one time."""

    def __post_init__(self):
        if self.support == "sampled" and self.alpha != 1:
            raise SdftError(
                "divergence.support=sampled estimates the reverse KL only, and "
                f"divergence.alpha={self.alpha}: set divergence.alpha=1, or another divergence.support."
            )


@section("objective")
class ObjectiveConfig:
    """The weight of each completion token in the loss."""

    skip_tokens: Count = 0
    """Number of first completion tokens without loss; 3 in the released code, to suppress the teacher's
    phrases."""
    truncated: Literal["keep", "mask"] = "keep"
    """Treatment of completions that reach max_new_tokens without EOS: keep their loss, or mask it."""
    aggregation: Literal["sequence", "token", "sum"] = "sequence"
    """Reduction. sequence: mean over tokens, then over sequences; token: mean over all tokens; sum: their
    sum."""
    importance: Literal["log", "token", "sequence"] = "log"
    """Use of the importance ratio, the trainer's probability divided by the sampler's. log: only logged;
    token: multiplies each token's loss; sequence: its mean multiplies the sequence's loss (released code)."""
    importance_cap: NonNegative = 2.0
    """Maximum importance ratio."""
    balance: NonNegative = 0.0
    """Coefficient of the load-balancing loss of a mixture of experts; 0 for none, since the teacher's
    distribution is the target. A row counts by the weights of its tokens, which follow `aggregation`."""


OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"moments": None, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lion": {"moments": None, "b1": 0.9, "b2": 0.99},
    "adafactor": {},
}
"""Optimizer -> the constants that it reads beside those of all optimizers, with their defaults."""


@section("optimizer")
class OptimizerConfig:
    """The optimizer, with a learning rate schedule and clipping by global norm. All arithmetic is float32."""

    name: Literal["adamw", "lion", "adafactor"] = "adamw"
    """Optimizer. adamw: two moments per weight; lion: one moment, and steps of equal size for all weights
    (arXiv 2302.06675); adafactor: no first moment, and the row and column means of the second (arXiv
    1804.04235), with steps relative to the learning rate alone, as AdamW's."""
    learning_rate: NonNegative = 1e-5
    """Peak learning rate, after the warm-up. `sdft lab optimizers` chooses 1e-5 for every optimizer on the
    built-in model; Adafactor bears three times that rate, AdamW and Lion do not."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Decay after the warm-up: to 0 over the rest of the run (cosine, linear), or none (constant)."""
    warmup: NonNegative = 10
    """Number of linear warm-up steps; a number below 1 is a fraction of all steps."""
    clip: NonNegative = 1.0
    """Maximum global gradient norm; 0 disables clipping."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, per step relative to the learning rate."""
    moments: Literal["float32", "bfloat16", "float8"] | None = None
    """Storage of the moments of adamw and lion: 4, 2 or 1 bytes per weight and moment, with stochastic
    rounding; None for the dtype of model.param_dtype. Adafactor's means are few, and float32."""
    b1: Decay | None = None
    """Decay of the first moment of adamw, or share of it in a step of lion; None for 0.9."""
    b2: Decay | None = None
    """Decay of the second moment of adamw (None for 0.999), or of the moment of lion (None for 0.99)."""
    eps: PositiveNumber | None = None
    """Constant in the denominator of adamw, for numerical stability; None for 1e-8."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Rounding of bfloat16 parameters after a step (model.param_dtype). nearest: most small steps are lost;
    stochastic: up or down at random, so that the mean is the exact parameter and no step is lost."""
    freeze: tuple[str, ...] = ()
    """Regular expressions, searched in paths such as layers/q, of parameters that do not train; `q$` does not
    match q_norm."""

    def __post_init__(self):
        for key in ("moments", "b1", "b2", "eps"):
            value = getattr(self, key)
            if value is not None and key not in OPTIMIZER_DEFAULTS[self.name]:
                readers = [name for name, defaults in OPTIMIZER_DEFAULTS.items() if key in defaults]
                raise SdftError(
                    f"optimizer.{key}={value} has no effect with optimizer.name={self.name}: remove it, or "
                    f"set optimizer.name={' or '.join(readers)}."
                )

    def constant(self, key: str) -> float:
        """Return b1, b2 or eps: the value that is set, or the optimizer's default."""
        value = getattr(self, key)
        return OPTIMIZER_DEFAULTS[self.name][key] if value is None else value


@section("train")
class TrainConfig:
    """The training loop."""

    method: MethodName = "sdft"
    """Training method. sdft; sft: cross-entropy of the demonstrations; dft: the same, weighted by each
    token's probability; reinvoke: sft, then on-policy distillation of the base model on data.general; offline
    and offline_kl: cross-entropy and divergence on samples of the initial model with the demonstration in
    context; cpt: language modeling of data.text; joint: sft on all stages at once; oracle: no training, the
    demonstration in context. Sources: sdft_jax/config/methods.py."""
    reinvoke: Share = 0.5
    """Fraction of the steps, at the end of the run, in which method reinvoke distills the base model."""
    batch_size: Rows = 32
    """Number of prompts per update, each with one completion."""
    micro_batch: Rows | None = None
    """Number of rows whose activations are in memory at one time; None for the whole batch."""
    completion_buckets: tuple[Tokens, ...] = ()
    """Additional completion lengths, in tokens and below sampling.max_new_tokens, for which learning is
    compiled. A step uses the shortest one that holds its longest completion: the same result with less
    work."""
    epochs: PositiveNumber = 2.0
    """Number of passes over the data; ignored if `steps` is set."""
    steps: Positive | None = None
    """Total number of updates; None to use `epochs`."""
    seed: Seed = 42
    """Seed of data order and sampling."""
    log_every: Positive = 1
    """Number of steps between lines of metrics."""
    eval_every: Count = 0
    """Number of steps between evaluations; 0 to evaluate only before and after the run."""
    save_every: Count = 100
    """Number of steps between checkpoints; 0 to save only at the end."""
    rollouts_every: Count = 50
    """Number of steps between rollouts that are written to the run directory; 0 for never."""
    rollouts_rows: Positive = 4
    """Number of rollouts to write at such a step."""
    phases_every: Count = 100
    """Number of steps between separate timings of sampling, which give the throughput of each phase; 0 for
    never."""
    stop_at: PositiveShare | None = None
    """Score at which to stop; None for never. The score is the accuracy on eval.validation or, if that is
    None, on eval.path (report results on other rows then)."""
    patience: Count = 0
    """Number of consecutive evaluations without a better score after which to stop; 0 for never."""
    max_kl: NonNegative | None = None
    """Maximum KL(model || base) on eval.prior, in nats per token; None for no maximum. Training stops if it
    is exceeded, and such a checkpoint is not chosen."""
    choose: Literal["last", "best"] = "last"
    """Checkpoint that becomes the run's model: the last, or the one with the best score (never the lowest
    loss)."""


@section("eval")
class EvalConfig:
    """Greedy accuracy on rows with the fields of `data`."""

    path: str | None = None
    """Source of held-out rows of the new skill; None not to evaluate it."""
    validation: str | None = None
    """Source of rows of the new skill for stopping and choosing; None to use eval.path."""
    prior: str | None = None
    """Source of rows of prior skills, which measure forgetting."""
    base: str | None = None
    """Reference model of the distances; None for model.path."""
    task: Literal[
        "exact",
        "contains",
        "normalised",
        "choice",
        "letter",
        "tooluse",
        "tooluse_official",
        "tooluse_strict",
        "toolcalls",
        "rule",
        "judge",
        "mini",
        "storms",
    ] = "exact"
    """Scorer of an answer; sdft_jax/evaluation/scorers documents each one. judge: the model of the section
    judge, or normalised if judge.url is not set."""
    batch_size: Rows = 64
    """Number of prompts per batch."""
    limit: Positive | None = None
    """Maximum number of rows to evaluate; None for all."""
    max_new_tokens: Tokens | None = None
    """Maximum length of an answer, in tokens; None for sampling.max_new_tokens."""
    overlap: Literal["error", "allow"] = "error"
    """Treatment of evaluation prompts that are also training prompts: raise an error with their count, or
    allow them."""
    teacher: bool = True
    """Also evaluate the model with the demonstration in context: the ceiling of self-distillation."""
    samples: Count = 0
    """Number of sampled answers to each row, for pass@k; read by `sdft evaluate` only."""
    temperature: Temperature | None = None
    """Temperature of the sampled answers; None for sampling.temperature."""
    top_p: PositiveShare | None = None
    """Top-p of the sampled answers; None for sampling.top_p."""


@section("judge")
class JudgeConfig:
    """A model behind an OpenAI-compatible endpoint, which grades answers (eval.task=judge) and writes
    questions (`sdft prepare knowledge`).
    """

    url: str | None = None
    """Base URL of the endpoint, such as http://localhost:8000/v1; None for no endpoint."""
    model: str | None = None
    """Name of the model at the endpoint."""
    key: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; the key itself is never written. An
    endpoint without keys needs no such variable."""
    prompt: str = "facts-v1"
    """Prompt of the grades: facts-v1 (correct, partially correct, incorrect), medical-v1 (correct,
    incorrect), or a text (or `file:PATH`) with $question, $reference and $answer."""
    temperature: Temperature | None = 0.0
    """Sampling temperature of the model; None for the endpoint's default, if it refuses others."""
    concurrency: Annotated[Positive, Field(le=1024)] = 8
    """Number of requests at one time."""
    retries: Annotated[Count, Field(le=100)] = 6
    """Maximum number of repetitions of a request that gets no reply, after waits of 0.5 s, 1 s, 2 s, 4 s and
    8 s, or as long as the endpoint asks for."""
    timeout: PositiveNumber = 120.0
    """Maximum time that a request waits for its reply, in seconds."""
    cache: str | None = None
    """File of all replies, from which the same request is answered again; None for judge.jsonl in the user's
    cache."""

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key):  # it may be a key: do not print it
            raise SdftError(
                "judge.key is not the name of an environment variable: put the key into a variable, and give "
                "the variable's name, such as OPENAI_API_KEY."
            )
        if self.url is not None:
            _require_endpoint(self.url)
            if not self.model:
                raise SdftError("judge.url is set and judge.model is not: set judge.model to a model's name.")


def _require_endpoint(url: str) -> None:
    """Raise SdftError if `judge.url` is not a URL of http, or has a key, which is not quoted."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in url:
        raise SdftError(
            "judge.url is not a URL of http without a user name: give one such as http://localhost:8000/v1, "
            "and put the key into the environment variable that judge.key names."
        )


@section("knowledge")
class KnowledgeConfig:
    """The questions that `sdft prepare knowledge` makes of articles."""

    words: Annotated[Positive, Field(le=1 << 20)] = 1000
    """Maximum length of a passage, in words. A longer article is split between its paragraphs, and each
    passage gets questions of its own; data.max_teacher_prompt must hold a passage."""
    direct: Annotated[Positive, Field(le=1000)] = 10
    """Number of direct questions on a passage, each on one fact and in two wordings: to train, to test."""
    ood: Annotated[Count, Field(le=1000)] = 4
    """Number of out-of-distribution questions on a passage, which combine or apply facts; for tests only."""
    direct_prompt: str = "direct-v1"
    """Prompt of direct questions: direct-v1, or a text (or `file:PATH`) with $title, $passage and $count."""
    ood_prompt: str = "ood-v1"
    """Prompt of out-of-distribution questions: ood-v1, or a text (or `file:PATH`) as above."""


@section("continual")
class ContinualConfig:
    """The stages that one model is trained on in sequence; read by `sdft continual` only."""

    stages: tuple[dict[str, Any], ...] = dataclasses.field(default=(), hash=False)
    """Stages in order; each has a `name` and the keys in which it differs from the rest of the file, such as
    {name: tools, data: {path: FILE}, eval: {path: FILE}}."""
    suites: tuple[dict[str, Any], ...] = dataclasses.field(default=(), hash=False)
    """Additional evaluations; each has a `name`, a `path` and other keys of the eval section."""
    methods: tuple[MethodName, ...] = ()
    """Methods to compare, each on its own sequence of stages; empty for train.method."""
    learning_rates: tuple[NonNegative, ...] = ()
    """Learning rates to compare, the same for each method; empty for optimizer.learning_rate."""
    seeds: tuple[Seed, ...] = ()
    """Seeds of data order and sampling; empty for train.seed."""


@section("mesh")
class MeshConfig:
    """Number of devices along each mesh axis; one axis may be -1 for the devices that the others leave."""

    data: Integer = 1
    """Number of devices that split the batch and replicate the parameters."""
    fsdp: Integer = -1
    """Number of devices that split both the batch and the parameters."""
    tensor: Integer = 1
    """Number of devices that split heads, feed-forward width and vocabulary."""
    expert: Integer = 1
    """Number of devices that split the batch and the experts of a mixture-of-experts model; 1 without
    experts."""


@section("checkpoint")
class CheckpointConfig:
    """The checkpoints in `output`/checkpoints."""

    keep_last: Positive = 2
    """Number of newest checkpoints to keep."""
    keep_best: Count = 1
    """Number of checkpoints with the best scores to keep in addition; requires train.eval_every."""
    local: str | None = None
    """Directory on each host's own disk or memory, such as /dev/shm/sdft, for frequent checkpoints that are
    copied to the next host; None for none."""
    local_every: Positive = 10
    """Number of steps between two checkpoints in `local`."""


@section("profile")
class ProfileConfig:
    """A profiler trace of a few steps."""

    steps: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None
    """Steps FIRST:LAST, such as 10:13, whose XProf trace is written to `output`/profile; None for no
    trace."""

    def __post_init__(self):
        if self.bounds and not 0 < self.bounds[0] <= self.bounds[1]:
            raise SdftError(
                f"profile.steps={self.steps} is not a range of steps: give FIRST:LAST, counted from 1, such "
                "as 10:13."
            )

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The first and the last step."""
        if self.steps is None:
            return None
        first, _, last = self.steps.partition(":")
        return int(first), int(last)


@section("debug")
class DebugConfig:
    """Checks that slow a run down."""

    nans: bool = False
    """Stop at the first operation that returns a NaN, and name it. This needs memory for a second state; a
    step with a NaN is repeated operation by operation."""


@section("report")
class ReportConfig:
    """Destinations of metrics in addition to the console and metrics.jsonl."""

    tensorboard: bool = False
    """Write TensorBoard event files to `output`/tensorboard."""
    wandb: str | None = None
    """Name of a W&B project; requires `pip install wandb`."""
    trackio: str | None = None
    """Name of a Trackio project, on this machine by default (`trackio show`); requires `pip install
    trackio`."""
