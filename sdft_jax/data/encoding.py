"""Encoding of examples: chat prompts of the student and the teacher, and target completions, as tokens.

The student's prompt is the row's prompt. The teacher's prompt is the same conversation with its last user
turn wrapped by a template that adds the demonstration. Each has its own length limit. Nothing is truncated:
the released code truncates the teacher's prompt to the student's limit, which removes the question itself.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.examples import Example, Message
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REFERENCE_TEMPLATE = (
    "\n$question\n\nThis is an example for a response to the question:\n$demonstration\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)
"""The teacher's last user turn, byte for byte the same as in the paper's released code."""

LIMITS = {
    "prompt": "data.max_prompt",
    "teacher_prompt": "data.max_teacher_prompt",
    "target": "sampling.max_new_tokens",
    "text": "data.max_teacher_prompt",
}
"""The part of an example -> the option with its maximum length, in tokens. `text` is a target that is a raw
text; its limit is that of a teacher's prompt."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """One example as tokens, neither padded nor truncated; a part that was not requested is empty."""

    prompt: Int32[np.ndarray, " P"]
    """The student's prompt."""
    teacher_prompt: Int32[np.ndarray, " Q"]
    """The teacher's prompt: the same question with the demonstration in context."""
    target: Int32[np.ndarray, " N"]
    """The completion to imitate: the demonstration through the first end-of-turn token, or a raw text."""
    row: int
    """Index of the example in its source, from 0."""


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Rows over a limit, each listed under the first limit that it exceeds."""

    prompt: tuple[int, ...] = ()
    teacher_prompt: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    text: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """The number of dropped rows."""
        return sum(len(getattr(self, part)) for part in LIMITS)

    def __str__(self) -> str:
        """Return the count and the first row numbers of each limit; empty if no row was dropped."""
        reasons = []
        for part, option in LIMITS.items():
            if rows := getattr(self, part):
                numbers = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
                reasons.append(f"{len(rows)} over {option} (rows {numbers})")
        return "; ".join(reasons)


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """The conversion of conversations to tokens: a model's tokenizer and the teacher's template."""

    tokenizer: PreTrainedTokenizerBase
    template: string.Template
    """The teacher's last user turn, with the placeholders $question and $demonstration."""
    template_kwargs: Mapping[str, Any]
    """Additional arguments of the tokenizer's chat template."""
    eos_ids: tuple[int, ...]
    """The tokens that end a completion."""
    vocab_size: int | None = None
    """The number of token ids that the model has; None if it is not known."""

    @functools.cached_property
    def control_tokens(self) -> re.Pattern[str] | None:
        """A pattern of the texts that the tokenizer turns into a control token; None if there are none."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {str(token) for token in added if token.special}
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def tokenize(self, text: str, place: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a rendered text, which already contains its special tokens.

        Raises:
            SdftError: the model has no embedding of a token; the message names `place`.
        """
        ids = tokenize(self.tokenizer, text)
        if self.vocab_size is not None and ids.size and ids.max() >= self.vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(int(ids.max()))
            raise SdftError(
                f"{place}: the token {token!r} has id {ids.max()}, and the model has only the ids 0 to "
                f"{self.vocab_size - 1}: use the model's own tokenizer, or resize the model's embedding."
            )
        return ids


def make_format(
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    eos_ids: Sequence[int],
    vocab_size: int | None = None,
) -> PromptFormat:
    """Return the format that `data.template` and `data.template_kwargs` configure.

    Args:
        tokenizer: the model's tokenizer.
        config: the settings.
        eos_ids: the tokens that end a completion.
        vocab_size: the number of token ids that the model has; None not to compare tokens with it.

    Raises:
        SdftError: the template cannot be read or is malformed, or the model does not have a stop token or the
            padding token.
    """
    template = load_template(config.template)
    format = PromptFormat(tokenizer, template, config.template_kwargs, tuple(eos_ids), vocab_size)
    for name, token in (("pad_token", tokenizer.pad_token_id), *(("stop token", token) for token in eos_ids)):
        if vocab_size is not None and token is not None and not 0 <= token < vocab_size:
            raise SdftError(
                f"the {name} has id {token}, and the model has only the ids 0 to {vocab_size - 1}: correct "
                "tokenizer_config.json or generation_config.json."
            )
    return format


def load_template(setting: str) -> string.Template:
    """Return the teacher's template with $question and $demonstration: `reference`, a text, or `file:PATH`.

    Raises:
        SdftError: the file cannot be read, or a placeholder is missing, unknown or malformed.
    """
    text, name = setting, "data.template"
    if setting == "reference":
        text = REFERENCE_TEMPLATE
    elif setting.startswith("file:"):
        name = setting.removeprefix("file:")
        text = read_text(name, "give a text file in UTF-8 as data.template", limit=1 << 20)
    template = string.Template(text)
    if not template.is_valid():
        raise SdftError(f"{name}: a $ does not start a placeholder: write $$ for a dollar sign.")
    placeholders = set(template.get_identifiers())
    if unknown := sorted(placeholders - {"question", "demonstration"}):
        raise SdftError(f"{name}: unknown placeholder ${unknown[0]}: use only $question and $demonstration.")
    if missing := sorted({"question", "demonstration"} - placeholders):
        raise SdftError(
            f"{name}: ${missing[0]} is missing: the teacher's template requires $question and $demonstration."
        )
    return template


def student_messages(example: Example) -> list[Message]:
    """Return the conversation of the student's prompt."""
    if isinstance(example.prompt, str):
        return [{"role": "user", "content": example.prompt}]
    return list(example.prompt)


def teacher_messages(example: Example, template: string.Template) -> list[Message]:
    """Return the same conversation with its last user turn wrapped; system and earlier turns are unchanged.

    Substitution is a single pass: a `$` in the question or the demonstration is copied literally.
    """
    *earlier, last = student_messages(example)
    context = example.demonstration if example.context is None else example.context
    content = template.substitute(question=last["content"], demonstration=context)
    return [*earlier, {**last, "content": content}]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    kwargs: Mapping[str, Any],
    generation_prompt: bool = True,
) -> str:
    """Return the text of the chat template.

    Raises:
        jinja2.TemplateError: the template rejects the conversation.
    """
    options = {**kwargs, "tokenize": False, "add_generation_prompt": generation_prompt}
    conversation: list[Any] = list(messages)
    return str(tokenizer.apply_chat_template(conversation, **options))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Int32[np.ndarray, " T"]:
    """Return the tokens of a rendered text, which already contains its special tokens."""
    # verbose=False: the tokenizer's own length warning is about a limit that is not used here.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, np.int32)


def encode(example: Example, format: PromptFormat, *, teacher: bool = True, target: bool = False) -> Encoded:
    """Return the tokens of one example: the prompt and, if requested, the teacher's prompt and the target.

    Raises:
        SdftError: the chat template rejects the conversation, or the demonstration contains an end-of-turn
            token; the message names the row.
    """
    tokenizer, kwargs, empty = format.tokenizer, format.template_kwargs, np.zeros(0, np.int32)
    _refuse_control_tokens(example, format, teacher or target)
    try:
        asked = student_messages(example)
        prompt = render(tokenizer, asked, kwargs)
        _require(asked[-1]["content"], prompt, example, "prompt")
        wrapped = ""
        if teacher:
            shown = teacher_messages(example, format.template)
            wrapped = render(tokenizer, shown, kwargs)
            _require(shown[-1]["content"], wrapped, example, "teacher's prompt")
        completion = _completion(example, format, prompt) if target else empty
    except SdftError:
        raise
    except Exception as error:  # a template raises exceptions of any type
        raise SdftError(
            f"{example.location}: the model's chat template rejects this conversation ({reason(error)}): "
            "change its roles or data.template_kwargs, or use another chat template."
        ) from None
    place = example.location
    teacher_prompt = format.tokenize(wrapped, place) if teacher else empty
    return Encoded(format.tokenize(prompt, place), teacher_prompt, completion, example.row)


def _refuse_control_tokens(example: Example, format: PromptFormat, demonstration: bool) -> None:
    """Raise SdftError if a text of the row contains a control token, which would end or begin a turn."""
    if format.control_tokens is None:
        return
    texts = {f"message {number}": turn["content"] for number, turn in enumerate(student_messages(example))}
    if demonstration:
        texts |= {"demonstration": example.demonstration, "context": example.context or ""}
    for name, text in texts.items():
        if isinstance(text, str) and (match := format.control_tokens.search(text)):
            raise SdftError(
                f"{example.location}: the {name} contains {match[0]!r}, which is a control token of the "
                "model, such as an end-of-turn token: remove it."
            )


def _require(text: Any, rendered: str, example: Example, name: str) -> None:
    """Raise SdftError if the chat template changes a text by more than its whitespace.

    Templates trim texts, and Qwen3's puts line breaks around the thoughts of an answer.
    """
    if isinstance(text, str) and "".join(text.split()) not in "".join(rendered.split()):
        raise SdftError(
            f"{example.location}: the chat template does not render the {name} as it is, but drops or "
            "changes a part of it: change the row, data.template_kwargs or the chat template."
        )


def encode_all(
    examples: Sequence[Example],
    format: PromptFormat,
    config: DataConfig,
    *,
    max_target: int | None = None,
    teacher: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Return the tokens of the examples within the limits, and the rows over a limit.

    Args:
        examples: the rows.
        format: tokenizer and template.
        config: the limits of prompts, and the treatment of rows over a limit.
        max_target: the maximum length of a target, in tokens; None not to encode targets.
        teacher: False not to encode the teacher's prompts.
        progress: called as `progress(done, total)` after each row.

    Raises:
        SdftError: a row cannot be encoded or, with data.overlong=error, is over a limit; or no row is left.
    """
    limits = {
        "prompt": config.max_prompt,
        "teacher_prompt": config.max_teacher_prompt,
        "target": max_target or 0,
    }

    def measure(example: Example) -> tuple[Encoded, dict[str, int]]:
        encoded = encode(example, format, teacher=teacher, target=max_target is not None)
        return encoded, {part: len(getattr(encoded, part)) for part in limits}

    return _within_limits(examples, measure, limits, config, progress)


def encode_texts(
    examples: Sequence[Example],
    format: PromptFormat,
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Return raw texts as targets after a prompt of one token: BOS, or EOS if the tokenizer has no BOS.

    Limits, `progress` and errors are the same as in `encode_all`.
    """
    tokenizer = format.tokenizer
    first_token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prompt, empty = np.asarray([first_token], np.int32), np.zeros(0, np.int32)

    def measure(example: Example) -> tuple[Encoded, dict[str, int]]:
        if format.control_tokens and (match := format.control_tokens.search(example.demonstration)):
            raise SdftError(
                f"{example.location}: the text contains {match[0]!r}, which is a control token of the model: "
                "remove it."
            )
        text = format.tokenize(example.demonstration, example.location)
        return Encoded(prompt, empty, text, example.row), {"text": len(text)}

    return _within_limits(examples, measure, {"text": config.max_teacher_prompt}, config, progress)


def _within_limits(
    examples: Sequence[Example],
    measure: Callable[[Example], tuple[Encoded, dict[str, int]]],
    limits: Mapping[str, int],
    config: DataConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Encoded], Dropped]:
    """Split examples into those within all limits and the rest; `measure` returns tokens and lengths."""
    accepted: list[Encoded] = []
    dropped: dict[str, list[int]] = {part: [] for part in LIMITS}
    for done, example in enumerate(examples, 1):
        encoded, lengths = measure(example)
        over = next((part for part in limits if lengths[part] > limits[part]), None)
        if over is None:
            accepted.append(encoded)
        elif config.overlong == "error":
            option, tokens = LIMITS[over], lengths[over]
            raise SdftError(
                f"{example.location}: the {over.replace('_', ' ')} has {tokens} tokens, more than "
                f"{option}={limits[over]}: raise {option} to {tokens} or more, or set data.overlong=drop."
            )
        else:
            dropped[over].append(example.row)
        if progress is not None:
            progress(done, len(examples))
    result = Dropped(**{part: tuple(rows) for part, rows in dropped.items()})
    if not accepted:
        raise SdftError(
            f"{examples[0].source if examples else 'data'}: no row is left "
            f"({str(result) or 'there are no examples'}): raise the limits, or give other rows."
        )
    return accepted, result


def _completion(example: Example, format: PromptFormat, prompt: str) -> Int32[np.ndarray, " N"]:
    """Return the demonstration as the chat template renders it after `prompt`, through its first stop token.

    If the rendering does not extend the prompt or has no stop token, return the demonstration's text and EOS.
    """
    tokenizer, eos_ids = format.tokenizer, format.eos_ids
    plain = format.tokenize(example.demonstration, example.location)
    turn = {"role": "assistant", "content": example.demonstration}
    messages = [*student_messages(example), turn]
    conversation = render(tokenizer, messages, format.template_kwargs, generation_prompt=False)
    if conversation.startswith(prompt):
        _require(example.demonstration, conversation, example, "demonstration")
        # Tokenized separately: a sampled completion never merges with the prompt's last token.
        rendered = format.tokenize(conversation[len(prompt) :], example.location)
        stops = np.flatnonzero(np.isin(rendered, eos_ids))
        if stops.size:
            return rendered[: stops[0] + 1]
    if prompt.rstrip().endswith("<think>") and example.demonstration.lstrip().startswith("<think>"):
        raise SdftError(
            f"{example.location}: the chat template begins an answer with <think>, and so does the "
            "demonstration: remove <think> from its start."
        )
    return np.append(plain, np.int32(eos_ids[0]))
