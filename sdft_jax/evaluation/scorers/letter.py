"""Scorer of multiple-choice answers, which finds the letter by one of several extractions.

Published evaluations of the same answers differ by the extraction, so each has a name, and an evaluation
reports which one counted. They read the reply without thoughts, and the first that finds a letter counts:

| extraction | the letter is |
| --- | --- |
| official | the whole content of the last <answer> tag or, without a tag, the whole reply: scorer `choice` |
| tag | at the start of the last <answer> tag, as in "A: water", or that of the option whose text is in it |
| boxed | in the last \\boxed{...} |
| phrase | in the last phrase such as "the answer is A", "Answer: (A)" or "option A" |
| option | that of the only option whose text is in the last line |
| last | the last capital letter of an option that stands alone |

The options are read from the last user message, from lines such as "A: water", "A. water" or "(A) water".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sdft_jax.data.examples import Example
from sdft_jax.data.thoughts import without_thoughts
from sdft_jax.evaluation.scorers.text import tag_content

Options = Mapping[str, str]
"""Letter -> the text of the option."""

_LETTERS = "ABCDEFGHIJ"
_OPTION = re.compile(rf"^[ \t]*\(?([{_LETTERS}])[:.)][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-Z])\b")
_PHRASE = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+(?:is|would\s+be|should\s+be))?[\s*_]*:?[\s*_]*(?i:option\s+)?"
    r"[*_$\"'(\[]*([A-Z])(?![\w'])(?!\s+[a-z])"
)
_ALONE = re.compile(r"(?<![\w'\\])([A-Z])(?![\w'])(?!\s+[a-z])")


def score(completion: str, example: Example) -> bool:
    """Return True if the letter that the first successful extraction finds is the answer."""
    found = extract(completion, read_options(example))
    return found is not None and found[1] == str(example.answer).strip()


def detail(completion: str, example: Example) -> str:
    """Return the name of the extraction that counts; `none` if no extraction finds a letter."""
    found = extract(completion, read_options(example))
    return found[0] if found else "none"


def problem(answer: object) -> str | None:
    """Return the problem with a reference answer, or None if it is the letter of an option."""
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip() in _LETTERS:
        return None
    return f"it is {answer!r}; give the capital letter of an option, from A to {_LETTERS[-1]}."


def mismatch(example: Example) -> str | None:
    """Return the problem with a reference answer that is no letter of its prompt's options, or None."""
    options = read_options(example)
    return None if str(example.answer).strip() in options else _no_option(example, options)


def choice_mismatch(example: Example) -> str | None:
    """Return the problem with a reference answer that is none of its prompt's options, or None.

    An option is given by its letter or by its text, since scorer `choice` compares texts. Since other lines
    may look like options, a text is compared only if the prompt ends with them. A prompt with fewer than two
    options, such as "Q: ... A: ...", does not limit the answer.
    """
    options, answer = read_options(example), str(example.answer).strip()
    texts = [text for text in options.values() if text]
    if len(texts) < 2 or answer in {*options, *texts}:
        return None
    is_letter = len(answer) == 1 and answer in _LETTERS
    return _no_option(example, options) if is_letter or _ends_with(_prompt(example), options) else None


def _ends_with(prompt: str, options: Options) -> bool:
    """Return True if the last lines of a prompt are its options."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    return _OPTION.findall("\n".join(lines[-len(options) :])) == list(options.items())


def _prompt(example: Example) -> str:
    """Return the last user message."""
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1]["content"]


def _no_option(example: Example, options: Options) -> str:
    return (
        f"it is {example.answer!r}, and the options of the prompt are {', '.join(options)}; give one of "
        "them, or repair the prompt."
    )


def extract(completion: str, options: Options) -> tuple[str, str] | None:
    """Return (extraction, letter) of the first extraction that finds one; None if none does."""
    reply = without_thoughts(completion)
    for name, extraction in EXTRACTIONS.items():
        if letter := extraction(reply, options):
            return name, letter
    return None


def read_options(example: Example) -> Options:
    """Return the options in the last user message: the last lines that are lettered from A without a gap.

    Without such lines, the options are the letters, with empty texts.
    """
    options: dict[str, str] = {}
    for letter, text in _OPTION.findall(_prompt(example)):
        if letter == "A":
            options = {}
        if letter == _LETTERS[len(options) :][:1]:
            options[letter] = text
    return options or dict.fromkeys(_LETTERS, "")


def _official(reply: str, options: Options) -> str | None:
    content = tag_content(reply)
    return content if content in options else None


def _tag(reply: str, options: Options) -> str | None:
    if "<answer>" not in reply:
        return None
    content = tag_content(reply)
    start = re.match(r"\(?([A-Z])(?:[:.)]|$)", content)
    if start and start[1] in options:
        return start[1]
    return next((letter for letter, text in options.items() if text and content == text), None)


def _boxed(reply: str, options: Options) -> str | None:
    return _last(_BOXED, reply, options)


def _phrase(reply: str, options: Options) -> str | None:
    return _last(_PHRASE, reply, options)


def _option(reply: str, options: Options) -> str | None:
    line = reply.rstrip().rpartition("\n")[2]
    named = {
        letter: text
        for letter, text in options.items()
        if text and re.search(rf"(?<![\w.\-]){re.escape(text)}(?!\w|[.,]\d)", line, re.IGNORECASE)
    }
    # "heavy water" contains the option "water", which is not meant
    longest = [x for x, text in named.items() if not any(text in y and text != y for y in named.values())]
    return longest[0] if len(longest) == 1 else None


def _alone(reply: str, options: Options) -> str | None:
    return _last(_ALONE, reply, options)


def _last(pattern: re.Pattern[str], reply: str, options: Options) -> str | None:
    return next((letter for letter in reversed(pattern.findall(reply)) if letter in options), None)


Extraction = Callable[[str, Options], str | None]

EXTRACTIONS: dict[str, Extraction] = {
    "official": _official,
    "tag": _tag,
    "boxed": _boxed,
    "phrase": _phrase,
    "option": _option,
    "last": _alone,
}
"""Name -> a function of a reply without thoughts and the options that returns a letter, or None."""
