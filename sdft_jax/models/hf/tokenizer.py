"""Tokenizers of Hugging Face checkpoints, and the tokens that end a completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sdft_jax.errors import SdftError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hugging Face directory (never from the net) or name, checked.

    Raises SdftError when the files are missing or broken, or `check_tokenizer` refuses it.
    """
    from transformers import AutoTokenizer

    is_directory = Path(path).is_dir()
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if is_directory and not any((Path(path) / name).is_file() for name in files):
        raise SdftError(
            f"{path}: no tokenizer here (none of {', '.join(files)}): "
            "copy the tokenizer's files beside the weights."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=is_directory, trust_remote_code=False
        )
    except Exception as error:
        raise SdftError(
            f"{path}: the tokenizer cannot be loaded ({reason(error)}): "
            "give a directory with tokenizer.json and tokenizer_config.json."
        ) from error
    check_tokenizer(tokenizer, path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raises SdftError unless there are a chat template, a pad token and an EOS token."""
    if not tokenizer.chat_template:
        raise SdftError(
            f"{path}: the tokenizer has no chat template: use an instruction-tuned model, or put its "
            "chat_template.jinja beside tokenizer.json."
        )
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise SdftError(
                f"{path}: the tokenizer has no {name}: name one as {name} in tokenizer_config.json."
            )


def eos_ids(tokenizer: PreTrainedTokenizerBase, model_dir: str | Path) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's EOS, then those of the model's two config files."""
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = Path(model_dir) / name
        try:
            ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        except ValueError as error:
            raise SdftError(f"{file} is not valid JSON ({error}): copy it again from the model.") from None
        found += ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))
