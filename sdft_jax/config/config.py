"""The configuration of a run: frozen dataclasses, filled from a preset, a YAML file and `key=value`
overrides.

Everything is validated before any work begins. An unknown key or a value of the wrong type raises SdftError
with the key, its file and the nearest known key. Instances are hashable and hold no arrays.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sdft_jax.config.methods import Method, method_named
from sdft_jax.config.overrides import merge, parse_override, read_yaml
from sdft_jax.config.presets import PRESETS
from sdft_jax.config.section import NonNegative, section
from sdft_jax.config.settings import (
    CheckpointConfig,
    ContinualConfig,
    DataConfig,
    DebugConfig,
    DivergenceConfig,
    EvalConfig,
    JudgeConfig,
    KnowledgeConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ProfileConfig,
    ReportConfig,
    SamplingConfig,
    TeacherConfig,
    TrainConfig,
)
from sdft_jax.errors import SdftError, explanation
from sdft_jax.sharding.rules import Rules


@section("")
class Config:
    """The configuration of one run."""

    preset: Literal["sdft", "official"] = "sdft"
    """Source of the defaults: the recommended settings, or those of the released code."""
    output: str = "runs/sdft"
    """Run directory, for checkpoints, metrics, rollouts, plots and the exported model."""
    baseline: bool = False
    """Also train SFT on the same data, and report both."""
    baseline_learning_rate: NonNegative | None = None
    """Peak learning rate of the SFT baseline; None for optimizer.learning_rate."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    divergence: DivergenceConfig = Field(default_factory=DivergenceConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    knowledge: KnowledgeConfig = Field(default_factory=KnowledgeConfig)
    continual: ContinualConfig = Field(default_factory=ContinualConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    sharding: Rules = Field(default_factory=Rules)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    profile: ProfileConfig = Field(default_factory=ProfileConfig)
    debug: DebugConfig = Field(default_factory=DebugConfig)

    def __post_init__(self):
        for is_wrong, message in _contradictions(self):
            if is_wrong:
                raise SdftError(message)

    @property
    def method(self) -> Method:
        """The training method that `train.method` names."""
        return method_named(self.train.method)


def _contradictions(config: Config) -> list[tuple[bool, str]]:
    """Return (True if violated, error message) for each rule about combinations of settings."""
    train, evaluation, method = config.train, config.eval, config.method
    scored_rows = evaluation.validation or evaluation.path
    longest = max(train.completion_buckets, default=0)
    # stages may set the evaluations of their own
    is_scored = bool((scored_rows and train.eval_every) or config.continual.stages)
    return [
        (
            longest >= config.sampling.max_new_tokens,
            f"train.completion_buckets={train.completion_buckets}: {longest} is not below "
            f"sampling.max_new_tokens={config.sampling.max_new_tokens}: remove it.",
        ),
        (
            config.baseline and (not method.trains or (method.sampler is None and _is_cross_entropy(method))),
            f"baseline=true trains SFT in addition to another method, and train.method={train.method} needs "
            "none: set baseline=false, or another train.method.",
        ),
        (
            method.general and config.data.general is None,
            f"train.method={train.method} distills the base model on general prompts, and data.general "
            "is not set: set it to a source of prompts.",
        ),
        (
            train.choose == "best" and not (is_scored and config.checkpoint.keep_best),
            "train.choose=best needs evaluations: set eval.validation (or eval.path), train.eval_every and "
            "checkpoint.keep_best of at least 1.",
        ),
        (
            (train.stop_at is not None or train.patience > 0) and not is_scored,
            f"train.{'patience' if train.stop_at is None else 'stop_at'} stops by the score of evaluations, "
            "of which one is not set: set eval.validation (or eval.path) and train.eval_every.",
        ),
        (
            train.max_kl is not None and not evaluation.prior,
            "train.max_kl is a distance on the prompts of eval.prior, which is not set: set eval.prior.",
        ),
        (
            config.lora.rank > 0 and bool(config.optimizer.freeze),
            f"optimizer.freeze={list(config.optimizer.freeze)} freezes parameters of the model, and "
            f"lora.rank={config.lora.rank} freezes all of them: remove one of the two settings.",
        ),
    ]


def _is_cross_entropy(method: Method) -> bool:
    """Return True for SFT, cpt and joint, whose only loss is the cross-entropy of targets."""
    return all(phase.loss == "cross_entropy" for phase in method.phases)


_ADAPTER = TypeAdapter(Config)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file and overrides, on top of its preset.

    Args:
        path: the YAML file; None for the preset alone.
        overrides: settings such as `train.batch_size=16`, and names of further YAML files; the last one that
            sets a key counts.

    Raises:
        SdftError: the configuration is not valid; the message names the file or override, the key and the
            remedy.
    """
    tree = {} if path is None else read_yaml(path)
    if isinstance(overrides, str):
        raise TypeError(f"overrides={overrides!r} is a string: give a list of strings.")
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            setting, source = read_yaml(override), override
        else:
            setting, source = parse_override(override, _TEXTS.__contains__), f"override {override!r}"
        _refuse_unknown(Config, setting, source)
        tree = merge(tree, setting)
    preset = tree.get("preset", "sdft")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise SdftError(f"preset={preset!r} does not exist: use one of {', '.join(PRESETS)}.")
    return from_dict(merge(PRESETS[preset], expand_home(tree)), str(path or "overrides"))


PATHS = (
    "output",
    "model.path",
    "data.path",
    "data.general",
    "eval.path",
    "eval.validation",
    "eval.prior",
    "eval.base",
    "judge.cache",
    "checkpoint.local",
    "lora.adapter",
)
"""Keys whose value may be a local path."""


def expand_home(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with `~` at the start of a path as the home directory.

    Raises:
        SdftError: a path contains a NUL character.
    """
    expanded = dict(tree)
    for key, path in path_settings(tree).items():
        if "\0" in path:
            raise SdftError(f"{key}={path!r} contains a NUL character: remove it.")
        section, _, name = key.rpartition(".")
        change = {name: os.path.expanduser(path)}
        expanded |= {section: {**expanded[section], **change}} if section else change
    return expanded


def path_settings(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that may be local paths, by their dotted keys."""
    found = {}
    for key in PATHS:
        section, _, name = key.rpartition(".")
        part = tree.get(section) if section else tree
        if isinstance(part, Mapping) and isinstance(part.get(name), str):
            found[key] = part[name]
    return found


def from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """Return the configuration of nested dictionaries; error messages name `source`."""
    _refuse_unknown(Config, tree, source)
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise SdftError(f"{source}: {explanation(error)}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """Return nested plain dictionaries for YAML or JSON; `from_dict` reads them back."""
    return _ADAPTER.dump_python(config, mode="json")


def describe(config: Config) -> list[tuple[str, str, str]]:
    """Return (key, value, default) of every key that differs from the `sdft` defaults, each on one line."""
    flat, default = dict(_flatten(to_dict(config))), dict(_flatten(to_dict(Config())))
    return [(key, _one_line(flat[key]), _one_line(default[key])) for key in flat if flat[key] != default[key]]


def _one_line(value: Any) -> str:
    return str(value).replace("\n", "\\n")


def keys() -> list[str]:
    """Return all dotted keys in order of declaration."""
    return [key for key, _ in _flatten(to_dict(Config()))]


def is_setting(text: str) -> bool:
    """Return True for key=value with a known key, or with a key, perhaps misspelt, of a known section."""
    key, separator, _ = text.partition("=")
    sections = {known.partition(".")[0] for known in keys() if "." in known}
    section, dot, name = key.partition(".")
    named = all(part.isidentifier() for part in name.split("."))  # data.template_kwargs has keys of its own
    return bool(separator) and (key in keys() or (bool(dot) and section in sections and named))


def _text_keys(section: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _text_keys(value, f"{field.name}.")
        elif field.type in ("str", "str | None"):
            yield prefix + field.name


_TEXTS = frozenset(_text_keys(Config()))
"""Keys whose value is a text, which `key=value` arguments give literally."""


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, dict) and not key.endswith("template_kwargs")
        pairs += _flatten(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return pairs


def _refuse_unknown(section: Any, tree: Mapping[str, Any], source: str, prefix: str = "") -> None:
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in tree.items():
        if key not in fields:
            near = _nearest(prefix + str(key))
            hint = f"did you mean {near}?" if near else f"the known keys are {', '.join(fields)}."
            raise SdftError(f"{source}: unknown key {prefix}{key}; {hint}")
        nested = getattr(Config() if section is Config else None, key, None)
        if dataclasses.is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise SdftError(f"{source}: {key}={value!r} is not a section: give it keys and values.")
            _refuse_unknown(type(nested), value, source, f"{key}.")


def _nearest(unknown: str) -> str | None:
    """Return the known key most similar to this one: a section, a dotted key or the last part of one."""
    known = keys()
    sections = [] if "." in unknown else [field.name for field in dataclasses.fields(Config)]
    if near := difflib.get_close_matches(unknown, sections + known, n=1, cutoff=0.7):
        return near[0]
    last = {key.rpartition(".")[2]: key for key in reversed(known)}
    near = difflib.get_close_matches(unknown.rpartition(".")[2], last, n=1, cutoff=0.7)
    return last[near[0]] if near else None
