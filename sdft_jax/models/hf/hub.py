"""The directory of a model: a local one, a built-in model, or a download from the Hugging Face Hub."""

from __future__ import annotations

import importlib
from pathlib import Path

from sdft_jax.errors import SdftError, reason

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `model.path` -> package whose function `model_directories()` maps names to directories."""

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "README.md"]


def model_directory(path: str, key: str = "model.path") -> str:
    """Return the local directory of a model; download a Hub model (`owner/name`) without pickled weights.

    Raises:
        SdftError: there is no such model, or it is an adapter; the message begins with the setting `key`.
    """
    prefix, colon, name = path.partition(":")
    if prefix in EMBEDDED:
        return _embedded(prefix, name if colon else None, key)
    if Path(path).is_dir():
        return _model_of(path, path, key)
    if hub_name(path) is None:
        raise SdftError(
            f"{key}={path}: {'a file, and not a' if Path(path).is_file() else 'no such'} directory; give a "
            "Hugging Face checkpoint directory, a Hub name such as Qwen/Qwen2.5-0.5B-Instruct, or mini."
        )
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(path, allow_patterns=_FILES)
    except Exception as error:  # the Hub client raises many types of exceptions for an unavailable model
        raise SdftError(
            f"{key}={path}: no such directory, and not available from the Hub ({reason(error)}): "
            "check the name, or download the model and give its directory."
        ) from error
    return _model_of(directory, path, key)


def hub_name(path: str) -> str | None:
    """Return the Hub name (`owner/name`) that a path is; None for a directory or a built-in model."""
    if path.count("/") != 1 or path.startswith((".", "/", "~")) or Path(path).is_dir():
        return None
    return None if path.partition(":")[0] in EMBEDDED else path


def _model_of(directory: str, path: str, key: str) -> str:
    """Return `directory`, which is that of `path`; raise SdftError if it is a PEFT adapter."""
    if (Path(directory) / "adapter_config.json").exists() and not (Path(directory) / "config.json").exists():
        raise SdftError(
            f"{key}={path} is a PEFT adapter, and not a model: set {key} to its base model, "
            f"lora.adapter={directory}, and lora.rank to r of its adapter_config.json."
        )
    return directory


def _embedded(prefix: str, name: str | None, key: str) -> str:
    """Return the directory of the built-in model `prefix:name`, or of `prefix` if `name` is None."""
    directories = importlib.import_module(EMBEDDED[prefix]).model_directories()
    if name not in directories:
        raise SdftError(
            f"{key}={prefix}:{name}: there is no such built-in model; use {prefix} or one of "
            f"{', '.join(f'{prefix}:{other}' for other in directories if other)}."
        )
    return str(directories[name])
