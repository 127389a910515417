"""Encoding of examples: chat prompts of the student and the teacher, and target completions, as tokens.

The student's prompt is the row's prompt. The teacher's prompt is the same conversation with its last user
turn wrapped by a template that adds the demonstration. Each has its own length limit. Nothing is truncated:
the released code truncates the teacher's prompt to the student's limit, which removes the question itself.
"""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.control_tokens import ControlTokens
from sdft_jax.data.examples import Example, Message
from sdft_jax.data.token_bound import LONG, TokenBound, token_bound
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import RenderError, read_text, render

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
    control_tokens: ControlTokens
    """The control tokens of the tokenizer, and their treatment in the texts of rows."""
    vocab_size: int | None = None
    """The number of token ids that the model has; None if it is not known."""

    @functools.cached_property
    def bound(self) -> TokenBound | None:
        """The bound of a text's number of tokens, for texts that are too long to be tokenized."""
        return token_bound(self.tokenizer)

    def tokenize(self, text: str, place: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a rendered text, which already contains its special tokens.

        Raises:
            SdftError: the tokenizer cannot encode the text, or the model has no embedding of a token; the
                message names `place`.
        """
        try:
            ids = self.control_tokens.encode(text, place)
            ids = tokenize(self.tokenizer, text) if ids is None else ids
        except SdftError:
            raise
        except Exception as error:  # such as a word that a vocabulary without an unknown token does not have
            raise SdftError(
                f"{place}: the tokenizer cannot encode this row's text ({reason(error)}): change the row, or "
                "use another tokenizer."
            ) from None
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
        SdftError: the template cannot be read or is malformed, the model does not have a stop token or the
            padding token, or the tokenizer cannot encode control tokens as text.
    """
    template = load_template(config.template)
    control_tokens = ControlTokens(tokenizer, as_text=config.control_tokens == "text")
    if control_tokens.as_text and getattr(tokenizer, "backend_tokenizer", None) is None:
        raise SdftError(
            "data.control_tokens=text requires a tokenizer with a tokenizer.json: convert the tokenizer, or "
            "set data.control_tokens=refuse."
        )
    format = PromptFormat(
        tokenizer, template, config.template_kwargs, tuple(eos_ids), control_tokens, vocab_size
    )
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


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Int32[np.ndarray, " T"]:
    """Return the tokens of a rendered text, which already contains its special tokens."""
    # verbose=False: the tokenizer's own length warning is about a limit that is not used here.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, np.int32)


class _TooLong(Exception):
    """A part of an example exceeds its limit."""

    def __init__(self, part: str, tokens: int, exact: bool = True):
        self.part, self.tokens, self.exact = part, tokens, exact


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The encoding of the parts of one example, each within its limit."""

    example: Example
    """The example, with marks for control tokens that are encoded as text."""
    format: PromptFormat
    limits: Mapping[str, int]
    """Part -> maximum number of tokens; a part that is missing has no limit."""

    def require_short(self, text: Any, part: str, trimmed: bool = True) -> None:
        """Raise _TooLong if a text is so long that its part exceeds the limit with any tokens.

        Args:
            text: the text of the row, or the rendered one.
            part: the part that the text belongs to.
            trimmed: True if the chat template may change the text's whitespace.
        """
        limit, bound = self.limits.get(part), None
        if limit is not None and isinstance(text, str) and len(text) > LONG:
            bound = self.format.bound
        if limit is not None and bound and (tokens := bound.at_least(text, limit, trimmed)) > limit:
            raise _TooLong(part, tokens, exact=False)

    def within(self, ids: Int32[np.ndarray, " T"], part: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a part. Raises _TooLong if they exceed the limit."""
        if len(ids) > self.limits.get(part, len(ids)):
            raise _TooLong(part, len(ids))
        return ids

    def tokens(self, text: str, part: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a text that is tokenized as it is."""
        self.require_short(text, part, trimmed=False)
        return self.within(self.format.tokenize(text, self.example.location), part)

    def prompt(self, messages: Sequence[Message], part: str) -> tuple[str, Int32[np.ndarray, " T"]]:
        """Return the text of a prompt and its tokens."""
        last = messages[-1]["content"]
        self.require_short(last, part)
        text = self.render(messages)
        _require(last, text, self.example, _NAMES[part])
        return text, self.tokens(text, part)

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """Return the text of the chat template. Raises SdftError if the template rejects the conversation."""
        try:
            return render(self.format.tokenizer, messages, self.format.template_kwargs, generation_prompt)
        except RenderError as error:
            raise SdftError(
                f"{self.example.location}: the model's chat template rejects this conversation ({error}): "
                "change its roles or data.template_kwargs, or use another chat template."
            ) from None


_NAMES = {"prompt": "prompt", "teacher_prompt": "teacher's prompt"}


def encode(example: Example, format: PromptFormat, *, teacher: bool = True, target: bool = False) -> Encoded:
    """Return the tokens of one example: the prompt and, if requested, the teacher's prompt and the target.

    Raises:
        SdftError: the chat template rejects the conversation, or a text of the row contains a control token,
            and these are refused; the message names the row.
    """
    return _encode(example, format, {}, teacher, target)


def _encode(
    example: Example, format: PromptFormat, limits: Mapping[str, int], teacher: bool, target: bool
) -> Encoded:
    """Return the tokens of one example. Raises _TooLong for its first part that exceeds a limit."""
    encoder, empty = (
        _Encoder(_admit(example, format, teacher or target), format, limits),
        np.zeros(0, np.int32),
    )
    text, prompt = encoder.prompt(student_messages(encoder.example), "prompt")
    teacher_prompt = empty
    if teacher:
        _, teacher_prompt = encoder.prompt(
            teacher_messages(encoder.example, format.template), "teacher_prompt"
        )
    completion = encoder.within(_completion(encoder, text), "target") if target else empty
    return Encoded(prompt, teacher_prompt, completion, example.row)


def _admit(example: Example, format: PromptFormat, demonstration: bool) -> Example:
    """Return the example with marks for control tokens, which would end or begin a turn.

    Raises:
        SdftError: it contains one, and control tokens are refused.
    """
    admit, place = format.control_tokens.admit, example.location
    turns = enumerate(student_messages(example))
    changes: dict[str, Any] = {
        "prompt": tuple(admit(turn, f"{place}: the message {number}") for number, turn in turns)
    }
    if demonstration:
        changes["demonstration"] = admit(example.demonstration, f"{place}: the demonstration")
        changes["context"] = admit(example.context, f"{place}: the context")
    return dataclasses.replace(example, **changes)


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

    def encode_row(example: Example) -> Encoded:
        return _encode(example, format, limits, teacher, max_target is not None)

    return _within_limits(examples, encode_row, limits, config, progress)


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

    limits = {"text": config.max_teacher_prompt}

    def encode_row(example: Example) -> Encoded:
        text = format.control_tokens.admit(example.demonstration, f"{example.location}: the text")
        tokens = _Encoder(example, format, limits).tokens(text, "text")
        return Encoded(prompt, empty, tokens, example.row)

    return _within_limits(examples, encode_row, limits, config, progress)


def _within_limits(
    examples: Sequence[Example],
    encode_row: Callable[[Example], Encoded],
    limits: Mapping[str, int],
    config: DataConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Encoded], Dropped]:
    """Split examples into those within all limits and the rest, for which `encode_row` raises _TooLong."""
    accepted: list[Encoded] = []
    dropped: dict[str, list[int]] = {part: [] for part in LIMITS}
    for done, example in enumerate(examples, 1):
        try:
            accepted.append(encode_row(example))
        except _TooLong as over:
            if config.overlong == "error":
                option, part = LIMITS[over.part], over.part.replace("_", " ")
                tokens = f"{'' if over.exact else 'at least '}{over.tokens}"
                raise SdftError(
                    f"{example.location}: the {part} has {tokens} tokens, more than "
                    f"{option}={limits[over.part]}: raise {option} to {over.tokens} or more, or set "
                    "data.overlong=drop."
                ) from None
            dropped[over.part].append(example.row)
        if progress is not None:
            progress(done, len(examples))
    result = Dropped(**{part: tuple(rows) for part, rows in dropped.items()})
    if not accepted:
        raise SdftError(
            f"{examples[0].source if examples else 'data'}: no row is left "
            f"({str(result) or 'there are no examples'}): raise the limits, or give other rows."
        )
    return accepted, result


def _completion(encoder: _Encoder, prompt: str) -> Int32[np.ndarray, " N"]:
    """Return the demonstration as the chat template renders it after `prompt`, through its first stop token.

    If the rendering does not extend the prompt or has no stop token, return the demonstration's text and EOS.
    """
    example, format = encoder.example, encoder.format
    encoder.require_short(example.demonstration, "target")
    messages = [*student_messages(example), {"role": "assistant", "content": example.demonstration}]
    conversation = encoder.render(messages, generation_prompt=False)
    if conversation.startswith(prompt):
        _require(example.demonstration, conversation, example, "demonstration")
        # Tokenized separately: a sampled completion never merges with the prompt's last token.
        rendered = format.tokenize(conversation[len(prompt) :], example.location)
        stops = np.flatnonzero(np.isin(rendered, format.eos_ids))
        if stops.size:
            return rendered[: stops[0] + 1]
    if prompt.rstrip().endswith("<think>") and example.demonstration.lstrip().startswith("<think>"):
        raise SdftError(
            f"{example.location}: the chat template begins an answer with <think>, and so does the "
            "demonstration: remove <think> from its start."
        )
    plain = format.tokenize(example.demonstration, example.location)
    return np.append(plain, np.int32(format.eos_ids[0]))
