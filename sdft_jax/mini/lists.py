"""The mini world: list skills that a model of under a million parameters can know, and ones to teach it.

A prompt asks for a verb to be applied to a short list, in one of four alphabets, each with its own phrasing:

    please reverse the letters a b c d              <think> reverse </think> d c b a

The base model knows every verb in `OPERATIONS`, in every alphabet: these are the old skills. It thinks
first: it names the operation, then carries it out. It has also met the verbs in `NONCES`, each time with
another meaning, so it has learned to follow an expert's demonstration when there is one, and can only guess
when there is none. A new skill gives one nonce one meaning for good. The expert demonstrates it in a style
of its own, `by reverse = d c b a !`.

Every list belongs to exactly one of three splits by a hash of its items: what the base model was trained on,
what is demonstrated and what is held out never share a list, whatever the skill. Learning rates are chosen
on `validation`: held-out lists that no test asks about.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from sdft_jax.mini.curriculum import Curriculum, Kind, Text, teacher_turn

Items = list[str]


def _pairs(items: Items) -> Items:
    swapped = [item for i in range(0, len(items) - 1, 2) for item in (items[i + 1], items[i])]
    return swapped + items[len(swapped) :]


OPERATIONS: dict[str, Callable[[Items], Items]] = {
    "reverse": lambda x: x[::-1],
    "rotate": lambda x: x[1:] + x[:1],
    "unrotate": lambda x: x[-1:] + x[:-1],
    "pairs": _pairs,
    "ends": lambda x: x[-1:] + x[1:-1] + x[:1],
    "behead": lambda x: x[1:],
    "curtail": lambda x: x[:-1],
    "echo": lambda x: x[:1] + x,
    "linger": lambda x: x + x[-1:],
    "skip": lambda x: x[::2],
    "start": lambda x: x[:2],
    "finish": lambda x: x[-2:],
    "swap": lambda x: x[1::-1] + x[2:],
    "twist": lambda x: x[:-2] + x[:-3:-1],
}

ALPHABETS: dict[str, Items] = {
    "letters": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"],
    "digits": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "colours": ["red", "blue", "green", "pink", "black", "white", "brown", "grey", "gold", "teal"],
    "animals": ["cat", "dog", "cow", "pig", "hen", "fox", "owl", "bee", "ant", "elk"],
}

PHRASINGS: dict[str, str] = {
    "letters": "please {verb} the letters {items}",
    "digits": "digits : {items} ; task : {verb}",
    "colours": "what do you get if you {verb} these colours : {items} ?",
    "animals": "[ {items} ] -> {verb} ( animals )",
}

_ONSETS = ["bl", "dr", "gl", "gw", "kl", "pl", "sn", "vr"]
_RHYMES = ["ax", "ib", "ov", "eem", "urp", "izz", "oth", "ef"]
NONCES: Items = [onset + rhyme for rhyme in _RHYMES for onset in _ONSETS]

LENGTHS = (4, 5)
SPLITS = {"heldout": range(0, 2), "demonstrations": range(2, 5), "base": range(5, 20)}
TEST_ROWS, OLD_TEST_ROWS = 256, 8
"""Held-out rows of a new skill, and of an old one, that are the test; validation has other lists."""


@dataclass(frozen=True)
class Skill:
    """A verb with a meaning, asked for in one alphabet."""

    verb: str
    operation: str
    alphabet: str

    def prompt(self, items: Items) -> str:
        """What the user asks."""
        return PHRASINGS[self.alphabet].format(verb=self.verb, items=" ".join(items))

    def answer(self, items: Items) -> str:
        """What is right."""
        return " ".join(OPERATIONS[self.operation](items))


OLD_SKILLS: tuple[Skill, ...] = tuple(Skill(op, op, alphabet) for alphabet in ALPHABETS for op in OPERATIONS)

# Each means an operation that the base carries out without fault in that alphabet, under its known name.
NEW_SKILLS: tuple[Skill, ...] = (
    Skill("blax", "reverse", "letters"),
    Skill("drib", "ends", "digits"),
    Skill("glov", "rotate", "colours"),
    Skill("gweem", "swap", "animals"),
)


def demonstration(operation: str, answer: str) -> str:
    """The expert's style: it says what it does as it does it."""
    return f"by {operation} = {answer} !"


def own_response(operation: str, answer: str) -> str:
    """The model's style: the operation it thinks of, then the answer."""
    return f"<think> {operation} </think> {answer}"


def score(completion: str, row: dict[str, str]) -> bool:
    """Whether the answer is right, in whichever of the two styles it was given."""
    answer = completion.split("</think>")[-1].split("=")[-1].replace("!", " ")
    return answer.split() == row["answer"].split()


def in_split(items: Items, split: str) -> bool:
    """Splits are by list alone, so a list held out is held out for every skill."""
    return zlib.crc32(" ".join(items).encode()) % 20 in SPLITS[split]


def draw_items(alphabet: str, split: str, rng: np.random.Generator) -> Items:
    """A list of distinct items that belongs to `split`."""
    while True:
        items = [str(item) for item in rng.permutation(ALPHABETS[alphabet])[: rng.choice(LENGTHS)]]
        if in_split(items, split):
            return items


def rows(skill: Skill, split: str, n: int, seed: int) -> list[dict[str, str]]:
    """`n` rows of distinct lists."""
    return [_row(skill, items) for items in islice(_lists(skill, split, seed), n)]


def _lists(skill: Skill, split: str, seed: int) -> Iterator[Items]:
    """Distinct lists of `split`."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{skill} {split}".encode())])
    seen: set[tuple[str, ...]] = set()
    while True:
        items = draw_items(skill.alphabet, split, rng)
        if tuple(items) not in seen:
            seen.add(tuple(items))
            yield items


def _row(skill: Skill, items: Items) -> dict[str, str]:
    answer = skill.answer(items)
    return {
        "prompt": skill.prompt(items),
        "demonstration": demonstration(skill.operation, answer),
        "answer": answer,
    }


def demonstrations(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What the expert shows: rows to train on."""
    return rows(skill, "demonstrations", n, seed)


def heldout(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What the learner is examined on: lists that neither the base model nor any demonstration has used."""
    return rows(skill, "heldout", n, seed)


def validation(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What learning rates are chosen on: held-out lists that no test of any skill asks about."""
    lists = (items for items in _lists(skill, "heldout", seed + 1) if tuple(items) not in _tested())
    return [_row(skill, items) for items in islice(lists, n)]


@cache
def _tested() -> frozenset[tuple[str, ...]]:
    tests = [(skill, OLD_TEST_ROWS) for skill in OLD_SKILLS] + [(skill, TEST_ROWS) for skill in NEW_SKILLS]
    lists = (islice(_lists(skill, "heldout", seed=0), n) for skill, n in tests)
    return frozenset(tuple(items) for part in lists for items in part)


def old(split: str = "heldout") -> list[dict[str, str]]:
    """The prior suite, every old skill `OLD_TEST_ROWS` times; `split` is `heldout` (test) or `validation`.

    `skill` of a row is its operation.
    """
    draw = {"heldout": heldout, "validation": validation}[split]
    return [{**row, "skill": skill.operation} for skill in OLD_SKILLS for row in draw(skill, OLD_TEST_ROWS)]


def general(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` rows of random old skills on lists that the base model was trained on."""
    rng = np.random.default_rng([seed, zlib.crc32(b"general")])
    skills = [OLD_SKILLS[i] for i in rng.integers(len(OLD_SKILLS), size=n)]
    return [_row(skill, draw_items(skill.alphabet, "base", rng)) for skill in skills]


_STYLES = " ".join([*PHRASINGS.values(), demonstration("", "")])
WORDS: tuple[str, ...] = (
    *re.findall(r"\w+|[^\w\s]+", re.sub(r"{\w+}", " ", _STYLES)),
    *OPERATIONS,
    *(item for alphabet in ALPHABETS.values() for item in alphabet),
    *NONCES,
)
"""Vocabulary of the world."""

PLAIN_NONCES, SHOWN_NONCES, WRONG_THOUGHTS = 0.25, 0.8, 0.1
"""Shares in the base model's training: of nonces among verbs, without and with a demonstration, and of
responses after a random thought without loss, so that answers follow thoughts."""


def curriculum() -> Curriculum:
    """What the embedded base was trained on, the same stream of texts for the same seed."""
    kinds = {"plain": Kind(rows=48, prompt=21, response=10), "shown": Kind(rows=16, prompt=34, response=10)}
    return Curriculum("lists", WORDS, kinds, draw_text, exam)


def draw_text(kind: str, rng: np.random.Generator) -> Text:
    """A conversation about a list of the base split, `shown` with a demonstration or `plain` without."""
    shown = kind == "shown"
    operation, other = rng.choice(list(OPERATIONS), 2)
    nonce = rng.random() < (SHOWN_NONCES if shown else PLAIN_NONCES)
    verb = rng.choice(NONCES) if nonce else operation
    skill = Skill(str(verb), str(operation), str(rng.choice(list(ALPHABETS))))
    items = draw_items(skill.alphabet, "base", rng)
    row = _row(skill, items)
    user = teacher_turn(row["prompt"], row["demonstration"]) if shown else row["prompt"]
    wrong = rng.random() < WRONG_THOUGHTS
    thought = str(other) if wrong else skill.operation
    response = own_response(thought, " ".join(OPERATIONS[thought](items)))
    return Text(user, response, unlearned=(1,) if wrong else ())


def exam() -> Mapping[str, Sequence[Text]]:
    """Held-out lists: old skills alone, new skills alone and with a demonstration."""

    def texts(skills: Sequence[Skill], n: int, shown: bool) -> list[Text]:
        rows = [(skill, row) for skill in skills for row in heldout(skill, n)]
        return [
            Text(
                teacher_turn(row["prompt"], row["demonstration"]) if shown else row["prompt"],
                own_response(skill.operation, row["answer"]),
            )
            for skill, row in rows
        ]

    return {
        "old skills": texts(OLD_SKILLS, 8, False),
        "new skills": texts(NEW_SKILLS, 100, False),
        "new skills, shown": texts(NEW_SKILLS, 100, True),
    }
