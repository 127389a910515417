"""Encoding of examples: chat prompts of the student and the teacher, and target completions, as tokens.

The student's prompt is the row's prompt. The teacher's prompt is the same conversation with its last user
turn wrapped by a template that adds the demonstration. If tool calls and their results come after that turn,
they stay as they are: every chat template renders such a conversation, and both roles see the same calls.
Each prompt has its own length limit. Nothing is truncated: the released code truncates the teacher's prompt
to the student's limit, which removes the question itself.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.control_tokens import ControlTokens
from sdft_jax.data.examples import Example, Message
from sdft_jax.data.rendered import count_lost_thoughts, require_rendered, require_trace, require_turn
from sdft_jax.data.thoughts import (
    CHANNEL_TOKENS,
    FIELDS,
    begins_with_thought,
    opened_thought,
    prompt_thinks,
    remove_thoughts,
    without_channel_names,
)
from sdft_jax.data.token_bound import LONG, TokenBound, token_bound
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import RenderError, read_template, render

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


class Shown(NamedTuple):
    """The parts of an example that depend on its demonstration."""

    teacher_prompt: Int32[np.ndarray, " Q"]
    target: Int32[np.ndarray, " N"]


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
    """Index of the row in its source, from 0."""
    turn: int | None = None
    """Index of the demonstrated turn among the messages of a trace, from 0; None if the row is no trace."""
    others: tuple[Shown, ...] = ()
    """The parts with the example's further demonstrations."""
    lost_thoughts: int = 0
    """Number of earlier assistant turns whose thoughts the chat template drops."""


class Lengths(NamedTuple):
    """The lengths of the longest rows, in tokens; 0 for a part that is empty in every row."""

    prompt: int
    teacher_prompt: int
    target: int


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Rows that are not trained on, each listed under the first limit that it exceeds."""

    prompt: tuple[int, ...] = ()
    teacher_prompt: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    text: tuple[int, ...] = ()
    evaluated: tuple[int, ...] = ()
    """Rows whose prompts are those of an evaluation."""
    demonstrations: int = 0
    """The number of demonstrations over a limit, of rows that keep another one."""

    @classmethod
    def of(cls, rows: Iterable[tuple[int, str]], demonstrations: int = 0) -> Dropped:
        """Return the rows by their reasons, from pairs of a row and the name of a field."""
        parts: dict[str, list[int]] = {}
        for row, part in sorted(rows):
            parts.setdefault(part, []).append(row)
        return cls(**{part: tuple(numbers) for part, numbers in parts.items()}, demonstrations=demonstrations)

    def __add__(self, other: Dropped) -> Dropped:
        """Return the rows of two sources, each with the numbers of its own source."""
        both = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Dropped(*(one + another for one, another in both))

    @property
    def total(self) -> int:
        """The number of dropped rows, or turns of traces."""
        return sum(len(getattr(self, part)) for part in (*LIMITS, "evaluated"))

    def __str__(self) -> str:
        """Return the count and the first row numbers of each reason; empty if nothing was dropped."""
        names = {part: f"over {option}" for part, option in LIMITS.items()}
        reasons = []
        for part, name in (names | {"evaluated": "with a prompt of an evaluation"}).items():
            if rows := getattr(self, part):
                unique = list(dict.fromkeys(rows))  # several turns of a trace have the same row
                numbers = ", ".join(map(str, unique[:8])) + (", ..." if len(unique) > 8 else "")
                reasons.append(f"{len(rows)} {name} (rows {numbers})")
        if self.demonstrations:
            reasons.append(
                f"{self.demonstrations} demonstrations over a limit, of rows that keep another one"
            )
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
    teacher_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template for the teacher's prompt, each in the place of that in
    `template_kwargs`."""
    thoughts: Literal["keep", "remove"] = "keep"
    """The treatment of thoughts in the texts of rows."""

    def arguments(self, teacher: bool) -> dict[str, Any]:
        """Return the arguments of the chat template for the prompts of one role."""
        return {**self.template_kwargs, **(self.teacher_template_kwargs if teacher else {})}

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
    """Return the format that the templates and their arguments in the section `data` configure.

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
        tokenizer,
        template,
        config.template_kwargs,
        tuple(eos_ids),
        control_tokens,
        vocab_size,
        config.teacher_template_kwargs,
        config.thoughts,
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
    return read_template(
        setting, "data.template", {"reference": REFERENCE_TEMPLATE}, ("question", "demonstration")
    )


def student_messages(example: Example) -> list[Message]:
    """Return the conversation of the student's prompt."""
    if isinstance(example.prompt, str):
        return [{"role": "user", "content": example.prompt}]
    return list(example.prompt)


def teacher_messages(example: Example, template: string.Template) -> list[Message]:
    """Return the same conversation with its last user turn wrapped; system and earlier turns are unchanged.

    Substitution is a single pass: a `$` in the question or the demonstration is copied literally.
    """
    messages = student_messages(example)
    last = _question(messages)
    if messages[last]["role"] != "user":
        raise SdftError(
            f"{example.location}: no user message is before this turn, and the teacher's demonstration is "
            "added to the last one: add a user message, or remove the row."
        )
    context = example.demonstration if example.context is None else example.context
    content = template.substitute(question=messages[last]["content"], demonstration=context)
    return [*messages[:last], {**messages[last], "content": content}, *messages[last + 1 :]]


def _question(messages: Sequence[Message]) -> int:
    """Return the index of the last user message, after which may be tool calls and their results."""
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    return users[-1] if users else len(messages) - 1


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Int32[np.ndarray, " T"]:
    """Return the tokens of a rendered text, which already contains its special tokens."""
    # verbose=False: the tokenizer's own length warning is about a limit that is not used here.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, np.int32)


class DroppedRow(Exception):
    """A row is not trained on: a part of it exceeds its limit."""

    def __init__(self, row: int, part: str, tokens: int, exact: bool = True):
        self.row, self.part, self.tokens, self.exact = row, part, tokens, exact


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The encoding of the parts of one example, each within its limit."""

    example: Example
    """The example, with marks for control tokens that are encoded as text."""
    format: PromptFormat
    limits: Mapping[str, int]
    """Part -> maximum number of tokens; a part that is missing has no limit."""

    def require_short(self, text: Any, part: str, trimmed: bool = True) -> None:
        """Raise DroppedRow if a text is so long that its part exceeds the limit with any tokens.

        Args:
            text: the text of the row, or the rendered one.
            part: the part that the text belongs to.
            trimmed: True if the chat template may change the text's whitespace.
        """
        limit, bound = self.limits.get(part), None
        if limit is not None and isinstance(text, str) and len(text) > LONG:
            bound = self.format.bound
        if limit is not None and bound and (tokens := bound.at_least(text, limit, trimmed)) > limit:
            raise DroppedRow(self.example.row, part, tokens, exact=False)

    def within(self, ids: Int32[np.ndarray, " T"], part: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a part. Raises DroppedRow if they exceed the limit."""
        if len(ids) > self.limits.get(part, len(ids)):
            raise DroppedRow(self.example.row, part, len(ids))
        return ids

    def tokens(self, text: str, part: str) -> Int32[np.ndarray, " T"]:
        """Return the tokens of a text that is tokenized as it is."""
        self.require_short(text, part, trimmed=False)
        return self.within(self.format.tokenize(text, self.example.location), part)

    def prompt(self, messages: Sequence[Message], part: str) -> tuple[str, Int32[np.ndarray, " T"]]:
        """Return the text of a prompt and its tokens."""
        question = messages[_question(messages)]["content"]
        self.require_short(question, part)
        text = self.render(messages, teacher=part == "teacher_prompt")
        require_rendered(question, text, self.example.location, _NAMES[part])
        return text, self.tokens(text, part)

    def turn(self, prompt: str, teacher: bool = False) -> str | None:
        """Return the demonstration as the chat template renders it after `prompt`, with the end of the turn.

        None if the rendering does not extend the prompt. If `teacher`, the chat template has the arguments of
        the teacher's prompt.
        """
        reply = self.example.demonstration
        reply = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
        messages = [*student_messages(self.example), reply]
        conversation = self.render(messages, generation_prompt=False, teacher=teacher)
        if not conversation.startswith(prompt):
            return None
        place = self.example.location
        require_rendered(reply["content"], conversation, place, "demonstration")
        require_turn(reply, conversation[len(prompt) :], place)
        return conversation[len(prompt) :]

    @property
    def content(self) -> str:
        """The demonstration's text, in a trace without the fields for thoughts and tool calls."""
        reply = self.example.demonstration
        return reply if isinstance(reply, str) else reply["content"]

    def plain_text(self) -> str:
        """Return the demonstration's text, which the chat template does not render as a completion.

        Raises:
            SdftError: the demonstration also has tool calls or thoughts.
        """
        reply = self.example.demonstration
        if not isinstance(reply, str) and any(reply.get(key) for key in ("tool_calls", *FIELDS)):
            remedy = "set data.thoughts=remove, or " if any(reply.get(key) for key in FIELDS) else ""
            raise SdftError(
                f"{self.example.location}: the chat template does not render this turn as a completion of "
                f"its prompt with an end-of-turn token: {remedy}change data.template_kwargs, the row or the "
                "chat template."
            )
        return self.content

    def shown(self, prompt: str, turn: str | None) -> str:
        """Return the text of a trace's turn, which follows `prompt`, for the teacher's prompt.

        It is that of `turn` without control tokens, which would end the teacher's question, and without the
        empty thoughts of some templates; with the mark of a thought that the prompt opened.
        """
        control, stops = self.format.control_tokens, self.format.eos_ids
        if turn is None:
            return self.plain_text()
        ends = [
            turn.find(token) for token, number in control.ids.items() if number in stops and token in turn
        ]
        text = turn[: min(ends, default=len(turn))]
        if not CHANNEL_TOKENS.isdisjoint(control.ids):
            text = without_channel_names(text)
        opening = opened_thought(prompt)
        text = control.pattern.sub("", f"{opening}\n{text}" if opening else text)
        return re.sub(r"^\s*(<think>)?\s*</think>", "", text).strip()

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool = True, teacher: bool = False
    ) -> str:
        """Return the text of the chat template, with the arguments of one role.

        Raises:
            SdftError: the template rejects the conversation.
        """
        tools = {"tools": list(self.example.tools)} if self.example.tools else {}
        options = {**self.format.arguments(teacher), **tools}
        own = teacher and self.format.teacher_template_kwargs
        option = "data.teacher_template_kwargs" if own else "data.template_kwargs"
        try:
            return render(self.format.tokenizer, messages, options, generation_prompt)
        except RenderError as error:
            raise SdftError(
                f"{self.example.location}: the model's chat template rejects this conversation ({error}): "
                f"change its roles or {option}, or use another chat template."
            ) from None


_NAMES = {"prompt": "prompt", "teacher_prompt": "teacher's prompt"}


def encode(example: Example, format: PromptFormat, *, teacher: bool = True, target: bool = False) -> Encoded:
    """Return the tokens of one example: the prompt and, if requested, the teacher's prompt and the target.

    Raises:
        SdftError: the chat template rejects the conversation, or a text of the row contains a control token,
            and these are refused; the message names the row.
    """
    return _encode_with_others(example, lambda one: _encode(one, format, {}, teacher, target), every=True)


def turn_text(example: Example, format: PromptFormat) -> str:
    """Return the text of the turn of a trace, as the chat template renders it, without control tokens.

    Raises:
        SdftError: the chat template drops or changes a part of it.
    """
    encoder = _Encoder(_admit(example, format, True), format, {})
    prompt = encoder.render(student_messages(encoder.example))
    return _shown(encoder, prompt, encoder.turn(prompt))


def _shown(encoder: _Encoder, prompt: str, turn: str | None) -> str:
    """Return a turn as the student's template renders it, or else as the teacher's does: a turn may have
    thoughts that the template drops for a student without them.
    """
    if turn is None and encoder.format.teacher_template_kwargs:
        prompt = encoder.render(student_messages(encoder.example), teacher=True)
        turn = encoder.turn(prompt, teacher=True)
    return encoder.shown(prompt, turn)


def _encode(
    example: Example, format: PromptFormat, limits: Mapping[str, int], teacher: bool, target: bool
) -> Encoded:
    """Return the tokens of one example. Raises DroppedRow for its first part that exceeds a limit."""
    encoder, empty = (
        _Encoder(_admit(example, format, teacher or target), format, limits),
        np.zeros(0, np.int32),
    )
    example = encoder.example
    text, prompt = encoder.prompt(student_messages(example), "prompt")
    if example.turn is not None:
        require_trace(example, text)
    turn = functools.cache(functools.partial(encoder.turn, text))
    teacher_prompt, completion = empty, empty
    if teacher:
        if not isinstance(example.demonstration, str) and example.context is None:
            example = dataclasses.replace(example, context=_shown(encoder, text, turn()))
        _, teacher_prompt = encoder.prompt(teacher_messages(example, format.template), "teacher_prompt")
    if target:
        encoder.require_short(encoder.content, "target")
        completion = encoder.within(_completion(encoder, text, turn()), "target")
    lost = count_lost_thoughts(student_messages(example), text)
    return Encoded(prompt, teacher_prompt, completion, example.row, turn=example.turn, lost_thoughts=lost)


def _admit(example: Example, format: PromptFormat, demonstration: bool) -> Example:
    """Return the example with marks for control tokens, which would end or begin a turn; without its thoughts
    if these are removed.

    Raises:
        SdftError: it contains a control token, and these are refused; or it has nothing but thoughts.
    """
    if format.thoughts == "remove":
        example = remove_thoughts(example, demonstration)
    admit, place = format.control_tokens.admit, example.location
    turns = enumerate(student_messages(example))
    changes: dict[str, Any] = {
        "prompt": tuple(admit(turn, f"{place}: the message {number}") for number, turn in turns),
        "tools": tuple(admit(example.tools, f"{place}: a tool")),
    }
    if demonstration:
        changes["demonstration"] = admit(example.demonstration, f"{place}: the demonstration")
        changes["context"] = admit(example.context, f"{place}: the context")
    return dataclasses.replace(example, **changes)


@dataclasses.dataclass(frozen=True)
class RowEncoder:
    """The encoding of examples within the limits of their parts."""

    encode: Callable[[Example], Encoded]
    """Returns the tokens of an example. Raises DroppedRow for its first part that exceeds its limit."""
    limits: Mapping[str, int]
    """Part -> maximum number of tokens."""
    longest: Lengths
    """The lengths of the longest rows that are within the limits."""
    overlong: str
    """The treatment of rows over a limit: `drop` or `error`."""

    def __call__(self, example: Example) -> Encoded:
        """Return the tokens of an example.

        Raises:
            DroppedRow: a part is over its limit, and such rows are dropped.
            SdftError: the example cannot be encoded, or a part is over its limit.
        """
        try:
            return self.encode(example)
        except DroppedRow as over:
            if self.overlong == "drop":
                raise
            option, part = LIMITS[over.part], over.part.replace("_", " ")
            tokens = f"{'' if over.exact else 'at least '}{over.tokens}"
            raise SdftError(
                f"{example.location}: the {part} has {tokens} tokens, more than "
                f"{option}={self.limits[over.part]}: raise {option} to {over.tokens} or more, or set "
                "data.overlong=drop."
            ) from None


def prompt_encoder(
    format: PromptFormat, config: DataConfig, *, max_target: int | None = None, teacher: bool = True
) -> RowEncoder:
    """Return the encoder of prompts.

    Args:
        format: tokenizer and template.
        config: the limits of prompts, and the treatment of rows over a limit.
        max_target: the maximum length of a target, in tokens; None not to encode targets.
        teacher: False not to encode the teacher's prompts.
    """
    lengths = Lengths(config.max_prompt, config.max_teacher_prompt if teacher else 0, max_target or 0)
    limits = {
        "prompt": config.max_prompt,
        "teacher_prompt": config.max_teacher_prompt,
        "target": max_target or 0,
    }

    def encode_row(example: Example) -> Encoded:
        return _encode_with_others(example, encode_one, every=config.overlong == "error")

    def encode_one(example: Example) -> Encoded:
        return _encode(example, format, limits, teacher, max_target is not None)

    return RowEncoder(encode_row, limits, lengths, config.overlong)


def text_encoder(format: PromptFormat, config: DataConfig) -> RowEncoder:
    """Return the encoder of raw texts as targets after a prompt of one token: BOS, or EOS if the tokenizer
    has no BOS.
    """
    tokenizer = format.tokenizer
    first_token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prompt, empty = np.asarray([first_token], np.int32), np.zeros(0, np.int32)

    limits = {"text": config.max_teacher_prompt}

    def encode_row(example: Example) -> Encoded:
        text = format.control_tokens.admit(example.demonstration, f"{example.location}: the text")
        tokens = _Encoder(example, format, limits).tokens(text, "text")
        return Encoded(prompt, empty, tokens, example.row)

    return RowEncoder(encode_row, limits, Lengths(1, 0, config.max_teacher_prompt), config.overlong)


def _encode_with_others(example: Example, encode_one: Callable[[Example], Encoded], every: bool) -> Encoded:
    """Return an example with those of its demonstrations that are within the limits.

    Raises:
        DroppedRow: none of them is or, if `every`, one is not.
    """
    fitting, excess = [], None
    for demonstration in (example.demonstration, *example.others):
        try:
            fitting.append(encode_one(dataclasses.replace(example, demonstration=demonstration, others=())))
        except DroppedRow as error:
            excess = excess or error
    if excess and (every or not fitting):
        raise excess
    others = tuple(Shown(other.teacher_prompt, other.target) for other in fitting[1:])
    return dataclasses.replace(fitting[0], others=others)


def encode_all(
    examples: Sequence[Example],
    format: PromptFormat,
    config: DataConfig,
    *,
    max_target: int | None = None,
    teacher: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Return `encode_rows` with `prompt_encoder`."""
    encoder = prompt_encoder(format, config, max_target=max_target, teacher=teacher)
    return encode_rows(examples, encoder, progress)


def encode_texts(
    examples: Sequence[Example],
    format: PromptFormat,
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Return `encode_rows` with `text_encoder`."""
    return encode_rows(examples, text_encoder(format, config), progress)


def encode_rows(
    examples: Sequence[Example],
    encoder: RowEncoder,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Return the tokens of the examples within the limits, and the rows over a limit.

    Args:
        examples: the rows.
        encoder: encodes a row.
        progress: called as `progress(done, total)` after each row.

    Raises:
        SdftError: a row cannot be encoded or, with data.overlong=error, is over a limit; or no row is left.
    """
    accepted: list[Encoded] = []
    dropped: list[tuple[int, str]] = []
    demonstrations = 0
    for done, example in enumerate(examples, 1):
        try:
            accepted.append(encoder(example))
            demonstrations += len(example.others) - len(accepted[-1].others)
        except DroppedRow as over:
            dropped.append((example.row, over.part))
        if progress is not None:
            progress(done, len(examples))
    result = Dropped.of(dropped, demonstrations)
    if not accepted:
        raise SdftError(
            f"{examples[0].source if examples else 'data'}: no row is left "
            f"({str(result) or 'there are no examples'}): raise the limits, or give other rows."
        )
    return accepted, result


def _completion(encoder: _Encoder, prompt: str, turn: str | None) -> Int32[np.ndarray, " N"]:
    """Return the demonstration as the chat template renders it after `prompt`, through its first stop token.

    If the rendering does not extend the prompt or has no stop token, return the demonstration's text and EOS.
    """
    example, format = encoder.example, encoder.format
    if prompt_thinks(prompt) is False and begins_with_thought(encoder.content):
        raise SdftError(
            f"{example.location}: thinking is switched off at the end of the prompt, and the demonstration "
            "begins with a thought: set data.thoughts=remove, or switch thinking on in data.template_kwargs."
        )
    if turn is not None:
        # Tokenized separately: a sampled completion never merges with the prompt's last token.
        rendered = format.tokenize(turn, example.location)
        stops = np.flatnonzero(np.isin(rendered, format.eos_ids))
        if stops.size:
            return rendered[: stops[0] + 1]
    text = encoder.plain_text()
    opening = opened_thought(prompt)
    if opening and text.lstrip().startswith(opening):
        raise SdftError(
            f"{example.location}: the chat template begins an answer with {opening}, and so does the "
            f"demonstration: set data.thoughts=remove, or remove {opening} from its start."
        )
    return np.append(format.tokenize(text, example.location), np.int32(format.eos_ids[0]))
