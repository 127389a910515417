"""The table of tasks: the conversion of a raw row, the scorer, the origin and the fields of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from sdft_jax.errors import SdftError
from sdft_jax.tasks import knowledge_rows, medical, rule, science, tooluse
from sdft_jax.tasks.fields import Raw, Row


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its conversion, and the facts about its data set."""

    convert: Callable[[Raw, str], Row | None]
    """(raw row, place for error messages) -> the row; None if the raw row is not part of the task."""
    scorer: str
    """The scorer of its configuration, a name of `eval.task`."""
    answer: str
    """The form of its answers: `text`, `texts` (a list), `calls` (a list of tool calls)."""
    context: bool
    """True if the teacher reads the field `context` instead of a demonstration."""
    description: str
    homepage: str
    license: str
    more: tuple[str, ...] = ()
    """Further fields of its rows, all of them texts."""


TASKS: Mapping[str, Task] = {
    "tooluse": Task(
        tooluse.convert,
        "tooluse_official",
        answer="calls",
        context=False,
        description="ToolAlpaca: calls of documented tools, in ReAct form.",
        homepage="https://github.com/tangqiaoyu/ToolAlpaca",
        license="Apache-2.0",
    ),
    "science": Task(
        science.convert,
        "choice",
        answer="text",
        context=False,
        description="SciKnowEval chemistry, level 3: multiple-choice questions.",
        homepage="https://huggingface.co/datasets/hicai-zju/SciKnowEval",
        license="MIT",
    ),
    "medical": Task(
        medical.convert,
        "normalised",
        answer="text",
        context=False,
        description="HuatuoGPT-o1: open medical questions with short verifiable answers.",
        homepage="https://github.com/FreedomIntelligence/HuatuoGPT-o1",
        license="Apache-2.0",
    ),
    "rule": Task(
        rule.convert,
        "rule",
        answer="texts",
        context=True,
        description="Prompts to be answered by a rule that only the teacher reads.",
        homepage="https://arxiv.org/abs/2601.19897",
        license="Apache-2.0",
    ),
    "knowledge": Task(
        knowledge_rows.convert,
        "judge",
        answer="text",
        context=True,
        description="Questions on articles, which a model at judge.url writes.",
        homepage="https://arxiv.org/abs/2601.19897",
        license="that of the articles",
        more=("demonstration", "skill", "article"),
    ),
}


def get_task(name: str) -> Task:
    """Return the task of a name. Raises SdftError for an unknown name."""
    if name not in TASKS:
        raise SdftError(f"task {name!r} does not exist: use one of {', '.join(TASKS)}.")
    return TASKS[name]
