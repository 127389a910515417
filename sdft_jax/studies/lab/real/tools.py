"""A tool format: requests become calls of six invented tools, in one form.

The teacher's context has three calls of the tool that the request needs, as an expert or a retriever would
select them; the student must also learn which tool that is. Evaluated on other requests of the demonstrated
kinds, and on requests in words that nobody demonstrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

FORM = "The call is **{}({})**."

TOOLS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "skywatch": (
        ("What is the weather in {}?", "Is it cold in {}?"),
        ("Will it rain in {}?",),
        ("Lisbon", "Oslo", "Rome", "Cairo", "Lima", "Delhi", "Boston", "Dublin", "Vienna", "Prague", "Tokyo"),
    ),
    "wakebell": (
        ("Wake me at {}.", "Set an alarm for {}."),
        ("I have to get up at {}.",),
        ("six", "seven", "eight", "nine", "noon", "five", "ten", "four", "eleven", "three", "one"),
    ),
    "tunebox": (
        ("Play some {}.", "I want to hear {}."),
        ("Put on {}, please.",),
        ("jazz", "rock", "folk", "blues", "opera", "techno", "reggae", "soul", "swing", "disco", "metal"),
    ),
    "wordbridge": (
        ("How do you say {} in French?", "Translate the word {}."),
        ("What is the French word for {}?",),
        (
            "house",
            "bread",
            "river",
            "apple",
            "friend",
            "window",
            "garden",
            "summer",
            "horse",
            "chair",
            "night",
        ),
    ),
    "cartmate": (
        ("Order {} for me.", "Buy some {}."),
        ("We are out of {}.",),
        ("milk", "rice", "soap", "tea", "sugar", "paper", "butter", "salt", "candles", "coffee", "flour"),
    ),
    "lampkeeper": (
        ("Turn on the light in the {}.", "Make the {} brighter."),
        ("It is too dark in the {}.",),
        (
            "kitchen",
            "hall",
            "bedroom",
            "office",
            "cellar",
            "garage",
            "attic",
            "bathroom",
            "studio",
            "library",
            "shed",
        ),
    ),
}
"""Tool -> phrasings that are demonstrated, a phrasing that is not, and its inputs: two for examples, four to
train on, three to evaluate on, two to choose the rate on."""


def train() -> list[Row]:
    """Return the rows to train on: two phrasings of four inputs per tool."""
    return [
        _row(tool, phrasing, value, "request")
        for tool, (phrasings, _, values) in TOOLS.items()
        for phrasing in phrasings
        for value in values[2:6]
    ]


def validation() -> list[Row]:
    """Return the rows that choose the rate: other inputs in demonstrated phrasings."""
    return [
        _row(tool, phrasings[i], value, "request")
        for tool, (phrasings, _, values) in TOOLS.items()
        for i, value in enumerate(values[9:])
    ]


def test() -> list[Row]:
    """Return the rows to evaluate on: other inputs in demonstrated phrasings, then in new phrasings."""
    rows = [
        _row(tool, phrasings[i % 2], value, "request")
        for tool, (phrasings, _, values) in TOOLS.items()
        for i, value in enumerate(values[6:9])
    ]
    new = [
        _row(tool, other[0], value, "new phrasing")
        for tool, (_, other, values) in TOOLS.items()
        for value in values[7:9]
    ]
    return rows + new


def _row(tool: str, phrasing: str, value: str, kind: str) -> Row:
    call = FORM.format(tool, value)
    (first, second), _, (a, b, *_) = TOOLS[tool]
    shown = ((first, a), (second, b), (first, b))
    examples = [f"Question: {text.format(x)}\nAnswer: {FORM.format(tool, x)}" for text, x in shown]
    return {
        "prompt": phrasing.format(value),
        "demonstration": call,
        "context": "\n\n".join(examples),
        "answer": call,
        "skill": kind,
    }


def score(completion: str, row: Mapping[str, Any]) -> bool:
    """Return True if the first line of the completion is the call; a program reads one call from a line."""
    return completion.strip().partition("\n")[0].rstrip(" .") == str(row["answer"]).rstrip(".")
