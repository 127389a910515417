"""A page with the answers that changed between two evaluations, side by side: one file without assets."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from sdft_jax.evaluation.answer_log import Record, name_of
from sdft_jax.evaluation.comparison import Comparison, comparison_rows, comparison_sentence

LONGEST = 2000
"""Maximum number of words of an answer whose differences are marked; the time grows with its square."""

_TITLES = {
    "lost": "Lost: right in A, wrong in B",
    "gained": "Gained: wrong in A, right in B",
    "same verdict": "Other answers, the same verdict",
}

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222 }
table { border-collapse: collapse } th, td { text-align: left; padding: 0.2em 1em 0.2em 0 }
details { margin: 0.5em 0; border-top: 1px solid #ccc; padding-top: 0.5em }
summary { cursor: pointer } h2 { margin-top: 1.5em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.3em 0; font-size: 0.9em }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1em }
.right { border-left: 4px solid #2a8 } .wrong { border-left: 4px solid #c44 }
.sides > div { padding-left: 0.7em; min-width: 0 } .note { color: #666; font-size: 0.9em }
mark { background: #fd8 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<table>
<tr>{% for column in rows[0] %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for column in rows[0] %}<td>{{ row.get(column, "") }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>{{ sentence }}</p>
{% for group in groups %}
<h2>{{ group.title }} ({{ group.pairs | length }})</h2>
{% for pair in group.pairs %}
<details{% if group.open %} open{% endif %}>
<summary>{{ pair.row }}</summary>
<div class="note">prompt</div>
{% for turn in pair.prompt %}<pre>{% if turn.role %}<b>{{ turn.role }}</b> {% endif %}{{ turn.content }}</pre>
{% endfor %}<div class="note">reference answer</div><pre>{{ pair.reference }}</pre>
<div class="sides">
{% for side in pair.sides %}<div class="{{ 'right' if side.correct else 'wrong' }}">
<div class="note">{{ side.name }}: {{ side.verdict }}, {{ side.tokens }} tokens</div>
<pre>{% for text, marked in side.parts %}\
{% if marked %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}\
{% endfor %}</pre></div>
{% endfor %}</div>
</details>
{% endfor %}
{% endfor %}
</body>
</html>
"""


def comparison_page(comparison: Comparison, role: str) -> str:
    """Return the page as HTML: the table, and the answers that were lost, gained or changed.

    Every text is escaped. Words that only one of two answers has are marked.
    """
    groups = [
        {"title": _TITLES[name], "pairs": [_pair(*pair) for pair in pairs], "open": name != "same verdict"}
        for name, pairs in comparison.changed().items()
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        title=f"Answers of the {role} that changed",
        rows=comparison_rows(comparison),
        sentence=comparison_sentence(comparison),
        groups=groups,
    )


def marked_words(a: str, b: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return both texts as parts, each with True if the other text does not have it at this place.

    For example, "x y z" and "x q z" are [("x ", False), ("y ", True), ("z", False)] and the same with "q ".
    """
    words: list[list[str]] = [re.findall(r"\S+\s*|\s+", text) for text in (a, b)]
    if max(map(len, words)) > LONGEST:
        return [(a, False)], [(b, False)]
    parts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    blocks = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes()
    for kind, a_start, a_end, b_start, b_end in blocks:
        for side, (start, end) in enumerate(((a_start, a_end), (b_start, b_end))):
            if end > start:
                parts[side].append(("".join(words[side][start:end]), kind != "equal"))
    return parts


def _pair(before: Record, after: Record) -> dict[str, Any]:
    prompt, parts = before["prompt"], marked_words(before["completion"], after["completion"])
    turns = [{"content": prompt}] if isinstance(prompt, str) else prompt
    reference = before["answer"]
    return {
        "row": name_of(before),
        "prompt": [{"role": "", **_turn(turn)} for turn in turns],
        "reference": reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False),
        "sides": [_side("A", before, parts[0]), _side("B", after, parts[1])],
    }


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a turn; what is not a text, such as a call of a tool, is shown as JSON."""
    content = turn.get("content")
    others = {name: value for name, value in turn.items() if name not in ("role", "content")}
    texts = [content] if isinstance(content, str) else []
    texts += [json.dumps(content, ensure_ascii=False)] if content and not texts else []
    texts += [json.dumps(others, ensure_ascii=False)] if others else []
    return {"role": str(turn.get("role", "")), "content": "\n".join(texts)}


def _side(name: str, record: Record, parts: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    verdict = "right" if record["correct"] else "wrong"
    if record.get("fault") is not None:
        verdict = f"the scorer failed ({record['fault']})"
    verdict += ", truncated" if record["truncated"] else ""
    return {
        "name": name,
        "correct": record["correct"],
        "verdict": verdict,
        "tokens": record["tokens"],
        "parts": parts,
    }
