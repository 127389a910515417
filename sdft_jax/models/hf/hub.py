"""Where a model's files are: a directory, the embedded mini model, or a name on the Hugging Face Hub."""

from __future__ import annotations

import importlib
from pathlib import Path

from sdft_jax.errors import SdftError, reason

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `model.path` -> the package whose `model_directories()` maps names to directories."""

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def model_directory(path: str, key: str = "model.path") -> str:
    """Local directory of a model; a Hub name (`owner/name`) is downloaded, weights as safetensors only.

    Raises SdftError, which names the setting `key`, when there is nothing by that name.
    """
    prefix, colon, name = path.partition(":")
    if prefix in EMBEDDED:
        return _embedded(prefix, name if colon else None, key)
    if Path(path).is_dir():
        return path
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise SdftError(
            f"{key}={path}: no such directory; give a Hugging Face checkpoint directory, a Hub name "
            "such as Qwen/Qwen2.5-0.5B-Instruct, or mini."
        )
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, allow_patterns=_FILES)
    except Exception as error:  # the hub raises a dozen kinds, all of them meaning "not to be had"
        raise SdftError(
            f"{key}={path}: no such directory, and not to be had from the Hub ({reason(error)}): "
            "check the name, or download it and give the directory."
        ) from error


def _embedded(prefix: str, name: str | None, key: str) -> str:
    known = importlib.import_module(EMBEDDED[prefix]).model_directories()
    if name not in known:
        raise SdftError(
            f"{key}={prefix}:{name}: there is no such embedded model; use {prefix} or one of "
            f"{', '.join(f'{prefix}:{other}' for other in known if other)}."
        )
    return str(known[name])
