"""Tool use: ToolAlpaca, in which a question is answered by calls of documented tools, in ReAct form.

Formats of raw rows: those of the SDFT repository (`prompt`, `golden_answer` and, to train,
`golden_response`), and those of the SDPO repository (`prompt`, and `answer`: the calls as JSON text), which
has no demonstrations. ToolAlpaca's own files, arrays of tools with many questions each, are not read.

The released set was regenerated in March 2026: accuracies on the 68 rows before and on the 97 rows after that
date cannot be compared.
"""

from __future__ import annotations

import json
from typing import Any

from sdft_jax.evaluation.scorers import tooluse
from sdft_jax.tasks.fields import Raw, Row, invalid, messages_of, text_of, unknown


def convert(raw: Raw, place: str) -> Row:
    """Return the row of a question: the calls are its answer, the ReAct transcript is its demonstration."""
    if "prompt" not in raw and "NLDocumentation" in raw:
        expected = "rows of the SDFT or the SDPO repository, since those of ToolAlpaca itself are not read"
        raise unknown(raw, place, expected)
    name = "golden_answer" if raw.get("golden_answer") is not None else "answer"
    row: Row = {"prompt": messages_of(raw, "prompt", place)}
    if raw.get("golden_response") is not None:
        row["demonstration"] = text_of(raw, "golden_response", place)
    return row | {"answer": _calls(raw.get(name), name, place)}


def _calls(value: Any, name: str, place: str) -> list[dict[str, str]]:
    """Return the calls, with their inputs as JSON text."""
    calls = value
    if isinstance(value, str):
        try:
            calls = json.loads(value)
        except (ValueError, RecursionError):
            raise invalid(place, name, "is not valid JSON", "give a list of calls") from None
    if problem := tooluse.problem(calls):
        raise invalid(place, name, "cannot be scored", problem.partition(";")[0])
    return [{"Action": call["Action"], "Action_Input": _text(call["Action_Input"])} for call in calls]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
