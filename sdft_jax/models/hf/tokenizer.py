"""The tokenizer of a Hugging Face checkpoint and the tokens that end a completion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import RenderError, read_json, render, start_renderer
from sdft_jax.types import StopTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the checked tokenizer of a Hugging Face directory or Hub name.

    A directory is read without network access.

    Raises:
        SdftError: the files are missing or invalid, or the tokenizer fails `check_tokenizer`.
    """
    start_renderer()  # while transformers is imported
    from transformers import AutoTokenizer

    is_directory = Path(path).is_dir()
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if is_directory and not any((Path(path) / name).is_file() for name in files):
        raise SdftError(
            f"{path}: the directory has no tokenizer (none of {', '.join(files)}): copy the tokenizer's "
            "files into it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=is_directory, trust_remote_code=False
        )
    except Exception as error:
        # AutoTokenizer reads config.json too
        if type(error).__name__ == "StrictDataclassFieldValidationError":
            raise SdftError(f"{path}/config.json: {' '.join(str(error).split())}: correct it.") from None
        raise SdftError(
            f"{path}: the tokenizer cannot be loaded ({reason(error)}): "
            "give a directory with a valid tokenizer.json and tokenizer_config.json."
        ) from error
    of_processor = Path(path) / "chat_template.json"  # some multimodal models have their template only there
    if not tokenizer.chat_template and of_processor.is_file():
        tokenizer.chat_template = read_json(of_processor, "copy it again from the model").get("chat_template")
    check_tokenizer(tokenizer, path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise SdftError if the tokenizer has no chat template, no EOS token or no pad token."""
    if not tokenizer.chat_template:
        raise SdftError(
            f"{path}: the tokenizer has no chat template: use an instruction-tuned model, or put a "
            "chat_template.jinja in the directory of tokenizer.json."
        )
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise SdftError(f"{path}: the tokenizer has no {name}: set {name} in tokenizer_config.json.")


def read_eos_ids(tokenizer: PreTrainedTokenizerBase, model_dir: str | Path) -> tuple[int, ...]:
    """Return the tokens that end a completion.

    They are the tokenizer's EOS, those of the two config files, and the control token with which the chat
    template ends an assistant turn: base models have a template, but often list only the end of a text.
    """
    end = _end_of_turn(tokenizer)
    listed = listed_eos_ids(tokenizer, model_dir)
    return tuple(dict.fromkeys([*listed, *([] if end is None else [end])]))


def listed_eos_ids(tokenizer: PreTrainedTokenizerBase, model_dir: str | Path) -> tuple[int, ...]:
    """Return the tokenizer's EOS and those of the two config files, at which transformers stops."""
    eos_ids = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = Path(model_dir) / name
        if not file.exists():
            continue
        config = read_json(file, "copy it again from the model")
        text_config = config.get("text_config")  # of a multimodal model
        nested = text_config.get("eos_token_id") if isinstance(text_config, dict) else None
        ids = config.get("eos_token_id")
        ids = nested if ids is None else ids
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(token) is int for token in listed):
            raise SdftError(
                f"{file}: eos_token_id is {ids!r}, and not a token id or a list of them: correct it."
            )
        eos_ids += listed
    return tuple(dict.fromkeys(eos_ids))


def stop_tokens(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> StopTokens:
    """Return these stop tokens with the tokenizer's padding token and number of ids.

    Its ids may have gaps, and a model may have more: Qwen2.5's tokenizer has 151,665 and the model 151,936.
    """
    known = max(tokenizer.get_vocab().values()) + 1
    return StopTokens(tuple(eos_ids), int(tokenizer.pad_token_id), known)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the first control token that the chat template puts after an assistant turn, if there is one."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = render(tokenizer, messages, {}, generation_prompt=False)
    except RenderError:  # a template may require other roles or arguments; a row's error names the row
        return None
    _, found, rest = text.rpartition("answer")
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    places = {rest.find(token): number for token, number in added.items() if found and token in rest}
    return places[min(places)] if places else None
