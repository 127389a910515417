"""Where a model's files are: a directory, the embedded mini model, or a name on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from sdft_jax.errors import SdftError

MINI = Path(__file__).parent / "mini" / "base"
BASES = MINI.parent / "bases"
"""Further embedded models, one directory each."""

_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def model_directory(path: str, key: str = "model.path") -> str:
    """Local directory of a model; a Hub name (`owner/name`) is downloaded, weights as safetensors only.

    Raises SdftError, which names the setting `key`, when there is nothing by that name.
    """
    if path == "mini":
        return str(MINI)
    if path.startswith("mini:"):
        return _embedded(path.removeprefix("mini:"), key)
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SdftError(
            f"{key}={path}: no such directory, and not to be had from the Hub ({reason}): "
            "check the name, or download it and give the directory."
        ) from error


def _embedded(name: str, key: str) -> str:
    known = sorted(directory.name for directory in BASES.iterdir() if directory.is_dir())
    if name not in known:
        raise SdftError(
            f"{key}=mini:{name}: there is no such embedded model; use mini or one of "
            f"{', '.join(f'mini:{name}' for name in known)}."
        )
    return str(BASES / name)
