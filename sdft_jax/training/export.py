"""A run's checkpoint as a model: loaded into memory, or written as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import sys

import jax

from sdft_jax.algorithm import join, make_learner, make_model, stored_student
from sdft_jax.config import Config, sharding_from, to_dict
from sdft_jax.data.encoding import PromptFormat, make_format
from sdft_jax.models import (
    Model,
    model_directory,
    read_architecture,
    read_eos_ids,
    save_pretrained,
)
from sdft_jax.models.hf.adapter import save_adapter
from sdft_jax.models.hf.tokenizer import load_tokenizer
from sdft_jax.models.speaker import Speaker
from sdft_jax.sharding import Sharding, make_mesh, single_device
from sdft_jax.training import checkpoint
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
    params = join(loaded.state["params"], loaded.state.get("frozen", {}))
    return model, params, str(directory.checkpoints / str(loaded.step))


def load_prompt_format(config: Config) -> PromptFormat:
    """Return the prompt format of the model at `model.path`, without reading its weights."""
    _, directory = _source(config)
    tokenizer = load_tokenizer(directory)
    vocab_size = read_architecture(directory).vocab_size
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
        model, params, _ = load_run(run, sharding=sharding)
        # the run's own kernel may not exist on these devices
        model = dataclasses.replace(model, attention=config.model.attention)
    else:
        model = make_model(config, read_architecture(directory), sharding, directory)
        params = load_start(config, model, directory)
    return Speaker(model, params, format.tokenizer, format.eos_ids)


def _source(config: Config) -> tuple[RunDirectory | None, str]:
    """Return the run at `model.path`, if it is one, and the directory of the model that it started from."""
    path = config.model.path
    run = RunDirectory(path)
    if not run.checkpoints.is_dir():
        return None, model_directory(path)
    return run, model_directory(run.load_config().model.path)


def export(run: str, path: str, best: bool = False, dtype: str | None = None, merge: bool = False) -> str:
    """Write a run's model as a Hugging Face directory; return the checkpoint that was used.

    Args:
        run: the output directory of a run.
        path: the directory to write.
        best: use the checkpoint with the best score instead of the newest.
        dtype: the dtype of the tensors; None for the dtypes of the source model, or of the adapters.
        merge: write a run with adapters as a plain checkpoint, instead of the adapters alone for PEFT.
    """
    host = Sharding(make_mesh(devices=jax.devices("cpu")[:1]))  # a large model need not fit one accelerator
    directory = RunDirectory(run)
    config = directory.load_config()
    if config.lora.rank and not merge:
        model, adapters, chosen = _load_stored(config, directory, best, host)
        save_adapter(model, adapters, path, config.model.path, dtype)
        return chosen
    model, params, chosen = load_run(directory, best, host, "float32")
    save_pretrained(model, params, None, path, dtype=dtype)  # None: with the source's own tokenizer files
    return chosen
