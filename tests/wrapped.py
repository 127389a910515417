"""A text model within a checkpoint of a multimodal one."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

OLD = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
"""The beginnings of the names of a text model's tensors, alone and in most published checkpoints."""
NEW = {"model.": "model.language_model.", "lm_head.": "lm_head."}
"""The same in transformers."""
OTHERS = {
    "vision_tower.embeddings.position_ids": np.arange(5, dtype=np.int64),
    "vision_tower.rotary_emb.inv_freq": np.ones(2, np.float32),
    "multi_modal_projector.scale": np.array(3.5, np.float16),
}
"""Tensors that no text model has."""


def wrap(directory: Path, names: dict[str, str], outer: dict, inner: dict | None = None) -> None:
    """Put the text model in a directory into a wrapper, whose config.json is `outer` with the text model's.

    Args:
        directory: a checkpoint with one file.
        names: `OLD` or `NEW`.
        outer: the keys beside `text_config`.
        inner: keys of `text_config` that are different.
    """
    text = json.loads((directory / "config.json").read_text())
    text.pop("architectures")
    (directory / "config.json").write_text(json.dumps({**outer, "text_config": {**text, **(inner or {})}}))
    tensors = load_file(directory / "model.safetensors")
    renamed = {
        own + name.removeprefix(plain): tensor
        for name, tensor in tensors.items()
        for plain, own in names.items()
        if name.startswith(plain)
    }
    assert len(renamed) == len(tensors)
    save_file(renamed | OTHERS, directory / "model.safetensors")
