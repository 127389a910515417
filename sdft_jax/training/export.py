"""From a run's checkpoint to a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import jax

from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import abstract_state
from sdft_jax.algorithm.trainable import join
from sdft_jax.config import Config, load_config
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, read_config, save_pretrained
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.training import checkpoint
from sdft_jax.types import Params


def run_config(run: str) -> Config:
    """Configuration of a run directory. Raises SdftError when it is none."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise SdftError(f"{run} is not a run directory (no config.yaml in it): give the `output` of a run.")
    return load_config(file)


def load_run(run: str, best: bool = False, sharding: Sharding | None = None) -> tuple[Model, Params, str]:
    """(model, parameters, checkpoint) of the newest intact checkpoint of a run, or of its best one.

    Only the student's parameters are read, not the teacher and the optimizer; without `sharding` into the
    memory of the first device.
    """
    config = run_config(run)
    directory = model_directory(config.model.path)
    model = Model(
        read_config(directory), compute_dtype=config.model.compute_dtype, sharding=sharding, source=directory
    )
    chosen = checkpoint.best(run) if best else checkpoint.newest(run)
    wanted = abstract_state(model, make_optimizer(config.optimizer, 1), config)
    parts = {"params": wanted.params} | ({"frozen": wanted.frozen} if wanted.frozen else {})
    found = checkpoint.load(chosen, parts)
    return model, join(found["params"], found.get("frozen", {})), str(chosen)


def export(run: str, path: str, best: bool = False, dtype: str | None = None) -> str:
    """Write a run's model as a Hugging Face directory; returns the checkpoint that was used.

    Args:
        run: output directory of a run.
        path: directory to write.
        best: the checkpoint of highest accuracy instead of the newest.
        dtype: of the tensors; None for those of the source model.
    """
    host = Sharding(make_mesh(devices=jax.devices("cpu")[:1]))  # a large model need not fit one chip
    model, params, chosen = load_run(run, best, host)
    save_pretrained(model, params, None, path, dtype=dtype)  # None: the source's own tokenizer files
    return chosen
