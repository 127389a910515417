"""From a run's checkpoint to a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import yaml

from sdft_jax import checkpoint
from sdft_jax.config import Config, from_dict
from sdft_jax.errors import SdftError
from sdft_jax.hub import model_directory
from sdft_jax.models import Model, read_config, save_pretrained
from sdft_jax.optimizer import make_optimizer
from sdft_jax.partition import join
from sdft_jax.prompts import load_tokenizer
from sdft_jax.state import abstract_state
from sdft_jax.types import Params


def run_config(run: str) -> Config:
    """Configuration of a run directory. Raises SdftError when it is none."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise SdftError(f"{run} is not a run directory (no config.yaml in it): give the `output` of a run.")
    return from_dict(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def load_run(run: str, best: bool = False) -> tuple[Model, Params, str]:
    """(model, parameters, checkpoint) of the newest intact checkpoint of a run, or of its best one.

    Only the student's parameters are read, not the teacher and the optimizer.
    """
    config = run_config(run)
    directory = model_directory(config.model.path)
    model = Model(read_config(directory), compute_dtype=config.model.compute_dtype, source=directory)
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
    model, params, chosen = load_run(run, best)
    save_pretrained(model, params, load_tokenizer(model.source), path, dtype=dtype)
    return chosen
