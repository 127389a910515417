"""(prompt, demonstration) -> student and teacher chat prompts -> tokens.

The student sees the prompt; the teacher sees the same conversation with the last user turn wrapped by a
template that shows it the demonstration. Each has its own length limit and nothing is ever cut: the
released code cuts the teacher's prompt at the student's limit, which removes the question itself.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32
from jinja2 import TemplateError

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.examples import Example, Message
from sdft_jax.errors import SdftError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REFERENCE_TEMPLATE = (
    "\n$question\n\nThis is an example for a response to the question:\n$demonstration\n\n"
    "Now answer with a response of your own, including the thinking process.\n"
)
"""Teacher's last user turn, byte for byte that of the paper's released code."""

LIMITS = {
    "prompt": "data.max_prompt",
    "teacher_prompt": "data.max_teacher_prompt",
    "demonstration": "sampling.max_new_tokens",
    "text": "data.max_teacher_prompt",
}
"""Which option limits which part of `Encoded`; a raw text, which stands where the demonstration does, has the
limit of a teacher's prompt, which would hold it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """One example as tokens, neither padded nor cut; a part that was not asked for is empty."""

    prompt: Int32[np.ndarray, " P"]
    teacher_prompt: Int32[np.ndarray, " Q"]
    demonstration: Int32[np.ndarray, " N"]
    """The demonstration as a completion, through the first end-of-turn token."""
    row: int


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Rows that were over a limit, by the first limit that they exceed."""

    prompt: tuple[int, ...] = ()
    teacher_prompt: tuple[int, ...] = ()
    demonstration: tuple[int, ...] = ()
    text: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """How many rows were dropped."""
        return sum(len(getattr(self, part)) for part in LIMITS)

    def __str__(self) -> str:
        """Counts and row numbers per limit; empty when nothing was dropped."""
        reasons = []
        for part, option in LIMITS.items():
            if rows := getattr(self, part):
                shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
                reasons.append(f"{len(rows)} over {option} (rows {shown})")
        return "; ".join(reasons)


def load_template(setting: str) -> string.Template:
    """The teacher's template: `reference`, a text, or `file:PATH`; $question and $demonstration each occur.

    Raises SdftError naming what is missing, unknown or malformed.
    """
    text, name = setting, "data.template"
    if setting == "reference":
        text = REFERENCE_TEMPLATE
    elif setting.startswith("file:"):
        name = setting.removeprefix("file:")
        try:
            text = Path(name).read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise SdftError(
                f"data.template: {name} cannot be read ({error}): give a UTF-8 text file."
            ) from None
    template = string.Template(text)
    if not template.is_valid():
        raise SdftError(f"{name}: a $ that starts no placeholder: write $$ for a dollar sign.")
    placeholders = set(template.get_identifiers())
    if unknown := sorted(placeholders - {"question", "demonstration"}):
        raise SdftError(
            f"{name}: unknown placeholder ${unknown[0]}: only $question and $demonstration are filled."
        )
    if missing := sorted({"question", "demonstration"} - placeholders):
        raise SdftError(f"{name}: ${missing[0]} is missing: the teacher's template needs both placeholders.")
    return template


def student_messages(example: Example) -> list[Message]:
    """The conversation as the student sees it."""
    if isinstance(example.prompt, str):
        return [{"role": "user", "content": example.prompt}]
    return list(example.prompt)


def teacher_messages(example: Example, template: string.Template) -> list[Message]:
    """The same conversation with the last user turn wrapped; system and earlier turns stay.

    Substitution is a single pass, so that a `$` in question or demonstration stays as it is.
    """
    *earlier, last = student_messages(example)
    shown = example.demonstration if example.context is None else example.context
    content = template.substitute(question=last["content"], demonstration=shown)
    return [*earlier, {**last, "content": content}]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    kwargs: Mapping[str, Any],
    generation_prompt: bool = True,
) -> str:
    """The chat template's text; jinja2.TemplateError when the template refuses the conversation."""
    options = {**kwargs, "tokenize": False, "add_generation_prompt": generation_prompt}
    conversation: list[Any] = list(messages)
    return str(tokenizer.apply_chat_template(conversation, **options))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Int32[np.ndarray, " T"]:
    """Tokens of rendered text; special tokens are already spelled out in it."""
    # verbose=False: the tokenizer's own length warning is about a limit that is not ours.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, np.int32)


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    template: string.Template,
    kwargs: Mapping[str, Any],
    eos: Sequence[int],
    teacher: bool = True,
    demonstration: bool = False,
) -> Encoded:
    """Tokens of one example: the prompt, and what else is asked for.

    Raises SdftError naming the row when the chat template refuses it.
    """
    nothing = np.zeros(0, np.int32)
    try:
        prompt = render(tokenizer, student_messages(example), kwargs)
        wrapped = render(tokenizer, teacher_messages(example, template), kwargs) if teacher else ""
        completion = _completion(example, tokenizer, prompt, kwargs, eos) if demonstration else nothing
    except TemplateError as error:
        raise SdftError(
            f"{example.where}: the model's chat template refuses this conversation ({reason(error)}): "
            "change its roles, or use another chat template."
        ) from None
    teacher_prompt = tokenize(tokenizer, wrapped) if teacher else nothing
    return Encoded(tokenize(tokenizer, prompt), teacher_prompt, completion, example.row)


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    eos: Sequence[int],
    max_completion: int | None = None,
    teacher: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Tokens of the examples that fit, and the rows that do not.

    `max_completion` limits demonstrations as completions; None leaves them out, `teacher=False` leaves
    the teacher's prompts out. `progress(done, total)` is called after each row. Raises SdftError for a row
    over a limit when data.overlong is `error`, and when no row is left.
    """
    template = load_template(config.template)
    limits = {
        "prompt": config.max_prompt,
        "teacher_prompt": config.max_teacher_prompt,
        "demonstration": max_completion or 0,
    }

    def measured(example: Example) -> tuple[Encoded, dict[str, int]]:
        encoded = encode(
            example, tokenizer, template, config.template_kwargs, eos, teacher, max_completion is not None
        )
        return encoded, {part: len(getattr(encoded, part)) for part in limits}

    return _within_limits(examples, measured, limits, config, progress)


def encode_texts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Encoded], Dropped]:
    """Raw texts as completions of a prompt of one token, BOS or, where the tokenizer has none, EOS.

    Limits, `progress` and errors are as in `encode_all`.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prompt, nothing = np.asarray([start], np.int32), np.zeros(0, np.int32)

    def measured(example: Example) -> tuple[Encoded, dict[str, int]]:
        text = tokenize(tokenizer, example.demonstration)
        return Encoded(prompt, nothing, text, example.row), {"text": len(text)}

    return _within_limits(examples, measured, {"text": config.max_teacher_prompt}, config, progress)


def _within_limits(
    examples: Sequence[Example],
    measured: Callable[[Example], tuple[Encoded, dict[str, int]]],
    limits: Mapping[str, int],
    config: DataConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Encoded], Dropped]:
    """The examples all of whose parts are within the limits, and the others; `measured` gives lengths."""
    kept: list[Encoded] = []
    dropped: dict[str, list[int]] = {part: [] for part in LIMITS}
    for done, example in enumerate(examples, 1):
        encoded, lengths = measured(example)
        over = next((part for part in limits if lengths[part] > limits[part]), None)
        if over is None:
            kept.append(encoded)
        elif config.overlong == "error":
            tokens = lengths[over]
            raise SdftError(
                f"{example.where}: {over} has {tokens} tokens, more than {LIMITS[over]}={limits[over]}: "
                f"raise {LIMITS[over]} to {tokens} or more, or set data.overlong=drop."
            )
        else:
            dropped[over].append(example.row)
        if progress is not None:
            progress(done, len(examples))
    result = Dropped(**{part: tuple(rows) for part, rows in dropped.items()})
    if not kept:
        raise SdftError(
            f"{examples[0].source if examples else 'data'}: no row is left: {result or 'no examples'}."
        )
    return kept, result


def _completion(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    kwargs: Mapping[str, Any],
    eos: Sequence[int],
) -> Int32[np.ndarray, " N"]:
    """What the chat template renders for the demonstration after `prompt`, through its first stop token.

    Text and EOS when the rendering does not extend the prompt or never stops.
    """
    plain = tokenize(tokenizer, example.demonstration)
    if np.isin(plain, eos).any():
        raise SdftError(f"{example.where}: the demonstration contains an end-of-turn token: remove it.")
    turn = {"role": "assistant", "content": example.demonstration}
    full = render(tokenizer, [*student_messages(example), turn], kwargs, generation_prompt=False)
    if full.startswith(prompt):
        # Tokenised by itself: the sampler's completions never merge with the prompt's last token.
        rendered = tokenize(tokenizer, full[len(prompt) :])
        stops = np.flatnonzero(np.isin(rendered, eos))
        if stops.size:
            return rendered[: stops[0] + 1]
    return np.append(plain, np.int32(eos[0]))
