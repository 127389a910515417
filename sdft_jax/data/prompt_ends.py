"""The end of each role's prompt, and if its completions begin with thoughts.

Chat templates of reasoning models open a thought at the end of a prompt, leave that to the model, or close an
empty thought to switch thinking off. Both roles score the same completion, so that the two must go together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from sdft_jax.data.encoding import Encoded, PromptFormat
from sdft_jax.data.thoughts import prompt_thinks
from sdft_jax.errors import SdftError
from sdft_jax.files import RenderError, render

SHOWN = 80
"""Number of characters of a prompt's end that are shown."""
SWITCHES = {"enable_thinking": (True, False), "thinking": (True, False), "reasoning_effort": ("high", "none")}
"""The arguments with which published chat templates switch thinking, and their values for on and off."""
PAGE = "sdft_jax/data/THINKING.md"


@dataclasses.dataclass(frozen=True)
class PromptEnd:
    """The end of a role's prompt."""

    text: str
    """The last `SHOWN` characters."""
    thinks: bool | None
    """True if completions begin with thoughts, False if thinking is switched off, None if the chat template
    shows neither."""


def prompt_ends(row: Encoded, format: PromptFormat) -> dict[str, PromptEnd]:
    """Return the ends of a row's prompts by role: `student` and, if the row has its prompt, `teacher`."""
    prompts = {"student": row.prompt, "teacher": row.teacher_prompt}
    return {
        role: _prompt_end(prompt, format, format.arguments(role == "teacher"))
        for role, prompt in prompts.items()
        if len(prompt)
    }


def refuse_thoughtless_teacher(ends: Mapping[str, PromptEnd]) -> None:
    """Raise SdftError if the teacher, which scores the student's thoughts, does not think itself."""
    student, teacher = ends["student"], ends["teacher"]
    if teacher.thinks is False and student.thinks is not False:
        raise SdftError(
            f"the student thinks, with prompts that end in {student.text[-30:]!r}, and the teacher, with "
            f"{teacher.text[-30:]!r}, does not, a pair with which accuracy collapses in training ({PAGE}): "
            "switch thinking off for both roles in data.template_kwargs, or on for the teacher in "
            "data.teacher_template_kwargs."
        )


def describe(ends: Mapping[str, PromptEnd]) -> Iterator[str]:
    """Yield the end of each role's prompt, on one line each, and remarks on thinking."""
    for role, end in ends.items():
        yield f"the {role}'s prompt ends in {end.text!r}"
    if "teacher" not in ends:
        return
    if ends["student"].thinks != ends["teacher"].thinks:
        yield f"thinking differs between the roles, which score the same tokens ({PAGE})"
    if ends["student"].thinks:
        yield f"the student thinks: in some studies, self-distillation lowers the accuracy then ({PAGE})"


def _prompt_end(
    prompt: Int32[np.ndarray, " P"], format: PromptFormat, arguments: Mapping[str, Any]
) -> PromptEnd:
    last = prompt[-4 * SHOWN :].tolist()  # a token may be a part of a character
    text = format.tokenizer.decode(last, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return PromptEnd(str(text)[-SHOWN:], _thinks(str(text), format, arguments))


def _thinks(prompt: str, format: PromptFormat, arguments: Mapping[str, Any]) -> bool | None:
    """Return `PromptEnd.thinks`, from the end of the prompt, or else by comparison with the template's text
    when thinking is switched on and off.
    """
    if (thinks := prompt_thinks(prompt)) is not None:
        return thinks
    for name, values in SWITCHES.items():
        settings: tuple[dict[str, Any], ...] = ({}, *({name: value} for value in values))
        now, on, off = (_rendered(format, {**arguments, **setting}) for setting in settings)
        if on != off:
            return now != off
    return None


def _rendered(format: PromptFormat, arguments: Mapping[str, Any]) -> str:
    """Return the text of the chat template for a question; empty if the template rejects it."""
    try:
        return render(format.tokenizer, [{"role": "user", "content": "question"}], arguments)
    except RenderError:
        return ""
