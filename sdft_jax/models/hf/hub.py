"""The directory of a model: a local one, a built-in model, or a download from the Hugging Face Hub."""

from __future__ import annotations

import importlib
from pathlib import Path

from sdft_jax.errors import SdftError, reason

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `model.path` -> package whose function `model_directories()` maps names to directories."""

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def model_directory(path: str, key: str = "model.path") -> str:
    """Return the local directory of a model; download a Hub model (`owner/name`) without pickled weights.

    Raises:
        SdftError: there is no such model; the message begins with the setting `key`.
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
    except Exception as error:  # the Hub client raises many types of exceptions for an unavailable model
        raise SdftError(
            f"{key}={path}: no such directory, and not available from the Hub ({reason(error)}): "
            "check the name, or download the model and give its directory."
        ) from error


def _embedded(prefix: str, name: str | None, key: str) -> str:
    """Return the directory of the built-in model `prefix:name`, or of `prefix` if `name` is None."""
    directories = importlib.import_module(EMBEDDED[prefix]).model_directories()
    if name not in directories:
        raise SdftError(
            f"{key}={prefix}:{name}: there is no such built-in model; use {prefix} or one of "
            f"{', '.join(f'{prefix}:{other}' for other in directories if other)}."
        )
    return str(directories[name])
