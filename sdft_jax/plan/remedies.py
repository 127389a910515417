"""Changes of settings that reduce memory, with their savings counted from array shapes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sdft_jax.algorithm.learner import check_batch, make_model
from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import Model
from sdft_jax.plan.footprint import Count, peak_phase
from sdft_jax.sharding import Sharding, make_mesh

MAX_CHANGES = 8
"""The maximum number of combined changes; one setting may change several times."""
MIN_SAVING = 0.01
"""The minimum saving of a remedy, as a share of the memory that is needed without it."""


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change of settings that reduces memory."""

    text: str
    """The settings with their drawback, such as `model.remat=full (slower)`."""
    config: Config
    """The changed configuration."""
    mesh: Mapping[str, int]
    """Mesh axis -> number of devices, after the change."""
    saves: float
    """The bytes saved on a device in the phase that needs most, counted from array shapes."""


def remedies(config: Config, model: Model, count: Count) -> list[Remedy]:
    """Return the changes that reduce memory, the most effective first.

    Args:
        config: the current configuration.
        model: the current model, with its mesh.
        count: returns the arrays whose memory is to be reduced.
    """
    arrays = count(config, model)
    _, current = peak_phase(arrays)
    trains = any(one.kind == "optimizer" for one in arrays)
    options = []
    for text, changed, mesh in _changes(config, model):
        if text.startswith("lora.") and not trains:  # an evaluation has no use for new adapters
            continue
        try:
            other = _model_on(mesh, changed, model)
            check_batch(changed, other.sharding)
            _, size = peak_phase(count(changed, other))
        except SdftError:  # the mesh does not divide the batch or the model
            continue
        if current - size > MIN_SAVING * current:
            options.append(Remedy(text, changed, mesh, current - size))
    return sorted(options, key=lambda remedy: -remedy.saves)


def combined(config: Config, model: Model, count: Count, target: float) -> Remedy | None:
    """Return several changes that together save `target` bytes, or as much as possible.

    Each is the most effective after those before it. Return None if a single change is enough.
    """
    initial = dict(model.sharding.mesh.shape)
    mesh: Mapping[str, int] = initial
    texts: dict[str, str] = {}
    saved = 0.0
    for _ in range(MAX_CHANGES):
        options = remedies(config, model, count) if saved < target else []
        if not options:
            break
        best = options[0]
        config, mesh, model = best.config, best.mesh, _model_on(best.mesh, best.config, model)
        saved += best.saves
        if best.text.startswith("mesh."):
            changed = (f"mesh.{axis}={size}" for axis, size in mesh.items() if size != initial.get(axis, 1))
            texts["mesh"] = " ".join(changed)
        else:
            texts[best.text.partition("=")[0]] = best.text
    return Remedy(" with ".join(texts.values()), config, mesh, saved) if len(texts) > 1 else None


def _changes(config: Config, model: Model) -> Iterator[tuple[str, Config, Mapping[str, int]]]:
    """Yield (text, configuration, mesh) of each change, valid or not for the model."""
    mesh, moves = model.sharding.mesh.shape, [("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")]
    if model.architecture.experts:
        moves += [("data", "expert"), ("fsdp", "expert")]
    for source, target in moves:
        if mesh[source] % 2 == 0:
            sizes = {**mesh, source: mesh[source] // 2, target: mesh.get(target, 1) * 2}
            yield f"mesh.{source}={sizes[source]} mesh.{target}={sizes[target]}", config, sizes
    for text, settings in _optimizers(config):
        with contextlib.suppress(SdftError):  # b1, b2 or eps is set, which Adafactor does not read
            optimizer = dataclasses.replace(config.optimizer, **settings)
            yield text, dataclasses.replace(config, optimizer=optimizer), dict(mesh)
    for key, value, drawback in _settings(config, mesh):
        section, _, name = key.partition(".")
        try:
            part = dataclasses.replace(getattr(config, section), **{name: value})
            changed = dataclasses.replace(config, **{section: part})
        except SdftError:  # the value contradicts another setting
            continue
        yield f"{key}={value}" + (f" ({drawback})" if drawback else ""), changed, dict(mesh)


def _settings(config: Config, mesh: Mapping[str, int]) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, drawback) of each setting that may reduce memory."""
    rows = config.train.micro_batch or config.train.batch_size
    answer = config.eval.max_new_tokens or config.sampling.max_new_tokens
    halves = [
        ("train.micro_batch", rows, ""),
        ("sampling.max_new_tokens", config.sampling.max_new_tokens, "shorter completions"),
        ("eval.batch_size", config.eval.batch_size, ""),
        ("eval.max_new_tokens", answer, "shorter answers"),
        ("divergence.chunk", config.divergence.chunk, "slower"),
    ]
    if not config.train.micro_batch:  # otherwise the micro-batch bounds the memory of learning
        halves.insert(1, ("train.batch_size", config.train.batch_size, "changes training"))
    yield from ((key, size // 2, drawback) for key, size, drawback in halves if size > 1)
    rank = config.lora.rank // 2 if config.lora.rank else 32
    if rank and not config.lora.adapter:
        yield "lora.rank", rank, "trains only adapters of this rank"
    if config.lora.rank and config.lora.quantize != "nf4":
        yield "lora.quantize", "nf4" if config.lora.quantize else "int8", "the base is less exact"
    if mesh["tensor"] > 1 and not config.sharding.sequence:
        yield "sharding.sequence", "tensor", "more communication"
    if config.model.remat != "full":
        yield "model.remat", "full", "slower"
    if config.teacher.dtype == "float32":
        yield "teacher.dtype", "bfloat16", "rounding removes most of the EMA's motion"
    if config.model.param_dtype == "float32":
        kept = config.optimizer.rounding == "stochastic"
        yield "model.param_dtype", "bfloat16", "" if kept else "rounding removes small updates"


def _optimizers(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (text, settings) of each optimizer and storage of moments that may need less memory."""
    moments = config.optimizer.moments
    if config.optimizer.name == "adafactor":
        return
    reset = " optimizer.moments=null" if moments else ""
    yield f"optimizer.name=adafactor{reset} (no momentum)", {"name": "adafactor", "moments": None}
    if (moments or config.model.param_dtype) == "float32":
        yield "optimizer.moments=bfloat16", {"moments": "bfloat16"}
    if moments != "float8":
        yield "optimizer.moments=float8 (noise in the steps)", {"moments": "float8"}


def _model_on(mesh: Mapping[str, int], config: Config, model: Model) -> Model:
    """Return the model of a changed configuration on another mesh of the same devices."""
    devices = list(model.sharding.mesh.devices.flat)
    sharding = Sharding(make_mesh(**mesh, devices=devices), config.sharding)
    return make_model(config, model.architecture.plain, sharding, model.source)
