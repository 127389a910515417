"""A run's checkpoint as a model: loaded into memory, or written as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from sdft_jax.algorithm import join, make_learner, make_model, stored_student
from sdft_jax.config import Config, sharding_from, to_dict
from sdft_jax.data.encoding import PromptFormat, make_format
from sdft_jax.data.template_arguments import check_arguments
from sdft_jax.errors import SdftError
from sdft_jax.files.hashing import short_digest
from sdft_jax.models import (
    Architecture,
    Model,
    model_directory,
    open_checkpoint,
    read_architecture,
    read_eos_ids,
    save_pretrained,
)
from sdft_jax.models.hf.adapter import save_adapter
from sdft_jax.models.hf.model_card import write_card
from sdft_jax.models.hf.reading import open_reference, weights_digest
from sdft_jax.models.hf.tokenizer import load_tokenizer
from sdft_jax.models.hf.writing import rounding_note
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.reporting.sinks import EVALUATIONS, read_jsonl
from sdft_jax.sharding import Sharding, make_mesh, single_device
from sdft_jax.training import checkpoint
from sdft_jax.training.evaluations import load_reference
from sdft_jax.training.inputs import WEIGHTS, adapter_digest, tokenizer_digests
from sdft_jax.training.provenance import read_provenance
from sdft_jax.training.run_card import RunFacts, run_card
from sdft_jax.training.run_directory import RunDirectory, identity
from sdft_jax.training.start import load_base, load_start
from sdft_jax.types import NO_STOP, Params


def load_run(
    directory: RunDirectory,
    best: bool = False,
    sharding: Sharding | None = None,
    compute_dtype: str | None = None,
) -> tuple[Model, Params, str]:
    """Return (model, parameters, checkpoint) of a run's newest intact checkpoint, or of its best one.

    Only the student's parameters are read; without `sharding`, into the memory of the first device. The base
    of adapters is read from its own files, in `compute_dtype`; None for that of the run. Damaged checkpoints
    that were skipped are reported on standard error.
    """
    config = directory.load_config()
    model, params, chosen = _load_stored(config, directory, best, sharding)
    if model.architecture.lora:
        model = dataclasses.replace(model, compute_dtype=compute_dtype or model.compute_dtype)
        params = join(load_base(config, model, model.source), params)
    return model, params, chosen


def _load_stored(
    config: Config, directory: RunDirectory, best: bool, sharding: Sharding | None
) -> tuple[Model, Params, str]:
    """Return the model of a run, and the student's parameters in a checkpoint: of adapters, not the base."""
    source = model_directory(config.model.path)
    model = make_model(config, read_architecture(source), sharding or single_device(), source)
    parts = stored_student(make_learner(config, model, 1, NO_STOP))
    loaded = checkpoint.load(directory.checkpoints, parts, identity(to_dict(config)), best)
    for message in loaded.skipped:
        print(f"sdft: {message}", file=sys.stderr, flush=True)
    if model.architecture.lora:
        _refuse_changed_base(model, loaded.meta)
    params = join(loaded.state["params"], loaded.state.get("frozen", {}))
    return model, params, str(directory.checkpoints / str(loaded.step))


def _refuse_changed_base(model: Model, meta: Mapping[str, Any]) -> None:
    """Raise SdftError if the base of adapters is not the one that they were trained on."""
    digest = weights_digest(open_checkpoint(model.source, model.architecture))
    if meta.get("inputs", {}).get(WEIGHTS, digest) != digest:
        raise SdftError(
            f"{model.source}: the weights changed since the run trained adapters of them: restore the old "
            "files."
        )


def load_prompt_format(config: Config) -> PromptFormat:
    """Return the prompt format of the model at `model.path`, without reading its weights."""
    run, directory = _source(config)
    # before the tokenizer, whose class may read config.json too
    vocab_size = read_architecture(directory).vocab_size
    tokenizer = load_tokenizer(directory)
    if not run:  # that of an older version may have arguments without effect
        check_arguments(tokenizer, config.data)
    return make_format(tokenizer, config.data, read_eos_ids(tokenizer, directory), vocab_size)


def load_speaker(config: Config, format: PromptFormat | None = None) -> Speaker:
    """Return the model at `model.path` with its tokenizer, on the mesh of the configuration.

    Args:
        config: its `model.path` is a model directory or name, or a run directory, whose newest checkpoint is
            loaded.
        format: from `load_prompt_format`, if it has been loaded already.
    """
    run, directory = _source(config)
    format = format or load_prompt_format(config)
    sharding = sharding_from(config)
    if run:
        if config.lora.rank and config.lora != run.load_config().lora:
            raise SdftError(
                f"model.path={config.model.path} is a run, which has its own adapters: remove the settings "
                "of lora, or give the base model instead."
            )
        model, params, _ = load_run(run, sharding=sharding)
        # the run's own kernel may not exist on these devices
        model = dataclasses.replace(model, attention=config.model.attention)
    else:
        model = make_model(config, read_architecture(directory), sharding, directory)
        params = load_start(config, model, directory)
    return Speaker(model, params, format.tokenizer, format.eos_ids)


def speaker_digests(config: Config, format: PromptFormat) -> dict[str, str]:
    """Return digests of the model and the tokenizer that `load_speaker` would read, by their names in
    messages, without reading all weights.

    Args:
        config: the settings.
        format: from `load_prompt_format`.
    """
    run, directory = _source(config)
    architecture = read_architecture(directory)
    base = weights_digest(open_checkpoint(directory, architecture))
    weights = {WEIGHTS: base}
    if run:
        newest = checkpoint.newest_meta(run.checkpoints)
        weights = {WEIGHTS: _digest([base, newest.get("run"), newest.get(checkpoint.ARRAYS)])}
    return (
        weights
        | {"config.json of the model": _digest(json.loads(architecture.source_json))}
        | adapter_digest(config, architecture, directory)
        | tokenizer_digests(format.tokenizer, format.eos_ids)
        | {"the model of eval.base": _reference_digest(config, architecture)}
    )


def _digest(value: Any) -> str:
    return short_digest(json.dumps(value, sort_keys=True))


def _reference_digest(config: Config, architecture: Architecture) -> str:
    """Return the digest of the weights of eval.base; `none` if it is not set.

    Raises:
        SdftError: it has other parameters than the model.
    """
    path = config.eval.base
    if path is None:
        return "none"
    try:
        return weights_digest(open_reference(model_directory(path, "eval.base"), architecture))
    except SdftError as error:
        raise SdftError(f"eval.base={path} has other parameters than the model: {error}") from None


def load_reference_of(speaker: Speaker, config: Config) -> Params | None:
    """Return the parameters of eval.base, as `load_reference`; None without it."""
    if config.eval.base is None:
        return None
    return load_reference(speaker, config, _source(config)[1], model_directory(config.eval.base, "eval.base"))


def with_template_arguments(config: Config) -> Config:
    """Return the configuration with the chat template's arguments of the run at `model.path`.

    An argument that the configuration has itself is kept. Without a run, the configuration is unchanged.
    """
    run = _run_at(config.model.path)
    if not run:
        return config
    own, trained = config.data, run.load_config().data
    data = dataclasses.replace(
        own,
        template_kwargs={**trained.template_kwargs, **own.template_kwargs},
        teacher_template_kwargs={**trained.teacher_template_kwargs, **own.teacher_template_kwargs},
    )
    return dataclasses.replace(config, data=data)


def _source(config: Config) -> tuple[RunDirectory | None, str]:
    """Return the run at `model.path`, if it is one, and the directory of the model that it started from."""
    run = _run_at(config.model.path)
    return run, model_directory(run.load_config().model.path if run else config.model.path)


def _run_at(path: str) -> RunDirectory | None:
    run = RunDirectory(path)
    return run if run.checkpoints.is_dir() else None


@dataclasses.dataclass(frozen=True)
class HubNames:
    """Names on the Hugging Face Hub, for the card of an exported model."""

    model: str | None = None
    """Name of the exported model; None for that of its directory."""
    base: str | None = None
    """Name of the base, if `model.path` is a local copy of it. Adapters refer to their base by it."""


_NO_NAMES = HubNames()


def export(
    run: str,
    path: str,
    best: bool = False,
    dtype: str | None = None,
    merge: bool = False,
    names: HubNames = _NO_NAMES,
) -> str:
    """Write a run's model as a Hugging Face directory with a card; return the checkpoint that was used.

    Args:
        run: the output directory of a run.
        path: the directory to write.
        best: use the checkpoint with the best score instead of the newest.
        dtype: the dtype of the tensors; None for the dtypes of the source model, or of the adapters.
        merge: write a run with adapters as a plain checkpoint, instead of the adapters alone for PEFT.
        names: names on the Hub.

    Raises:
        SdftError: `path` is the run's own model, which holds the merged weights that were evaluated.
    """
    if Path(path).resolve() == RunDirectory(run).model.resolve():
        raise SdftError(f"{path} is the run's own model: write to another directory.")
    host = Sharding(make_mesh(devices=jax.devices("cpu")[:1]))  # a large model need not fit one accelerator
    directory = RunDirectory(run)
    config = directory.load_config()
    adapter = config.lora.rank > 0 and not merge
    if adapter:
        model, adapters, chosen = _load_stored(config, directory, best, host)
        save_adapter(model, adapters, path, names.base or config.model.path, dtype)
    else:
        model, params, chosen = load_run(directory, best, host, "float32")
        save_pretrained(model, params, None, path, dtype=dtype)  # None: with the source's own tokenizer files
        process_reporter().print(*rounding_note(model, params, dtype))
    if jax.process_index() == 0:
        facts = _facts(directory, int(Path(chosen).name), adapter)
        write_card(path, run_card(facts, names.model or Path(path).absolute().name, names.base))
    return chosen


def _facts(directory: RunDirectory, step: int, adapter: bool = False) -> RunFacts:
    """Return the facts about the model of a run at a step, for its card."""
    evaluations = read_jsonl(epath.Path(directory.output) / EVALUATIONS)
    return RunFacts(directory.load_config(), step, evaluations, read_provenance(directory.output), adapter)
