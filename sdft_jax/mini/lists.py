"""The list world: operations on short lists, for models with fewer than one million parameters.

A prompt asks the model to apply a verb to a list. There are four alphabets, each with its own phrasing:

    please reverse the letters a b c d              <think> reverse </think> d c b a

The old skills are the verbs in `OPERATIONS`, in every alphabet. The base model knows all of them. It first
names the operation in a thought and then writes the result.

The base model was also trained on the made-up verbs in `NONCES`, with a random meaning in each text. It
therefore follows an expert's demonstration if the prompt has one, and can only guess the operation otherwise.
A new skill gives one nonce a fixed meaning. The expert demonstrates it in a different style,
`by reverse = d c b a !`.

A hash of its items assigns each list to exactly one of three splits, whatever the skill. The base model's
training data, the demonstrations and the held-out rows therefore never share a list. Learning rates are
chosen on `validation`: held-out lists that are in no test.
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
"""The number of test rows of a new skill and of an old skill; validation rows have different lists."""


# The repr of a skill seeds its rows: renaming the class or a field changes the data.
@dataclass(frozen=True)
class Skill:
    """A verb, the operation that it means and the alphabet of its lists."""

    verb: str
    operation: str
    alphabet: str

    def prompt(self, items: Items) -> str:
        """Return the prompt for a list."""
        return PHRASINGS[self.alphabet].format(verb=self.verb, items=" ".join(items))

    def answer(self, items: Items) -> str:
        """Return the correct answer for a list."""
        return " ".join(OPERATIONS[self.operation](items))


OLD_SKILLS: tuple[Skill, ...] = tuple(Skill(op, op, alphabet) for alphabet in ALPHABETS for op in OPERATIONS)

# The base model makes no mistakes with these operations in these alphabets under their known verbs.
NEW_SKILLS: tuple[Skill, ...] = (
    Skill("blax", "reverse", "letters"),
    Skill("drib", "ends", "digits"),
    Skill("glov", "rotate", "colours"),
    Skill("gweem", "swap", "animals"),
)


def demonstration(operation: str, answer: str) -> str:
    """Return a response in the expert's style, which names the operation and gives the answer."""
    return f"by {operation} = {answer} !"


def own_response(operation: str, answer: str) -> str:
    """Return a response in the model's style: the operation in a thought, then the answer."""
    return f"<think> {operation} </think> {answer}"


def score(completion: str, row: dict[str, str]) -> bool:
    """Return True if the answer of a completion is correct, in the model's or the expert's style."""
    answer = completion.split("</think>")[-1].split("=")[-1].replace("!", " ")
    return answer.split() == row["answer"].split()


def in_split(items: Items, split: str) -> bool:
    """Return True if a list belongs to `split`, which depends on the list alone and not on the skill."""
    return zlib.crc32(" ".join(items).encode()) % 20 in SPLITS[split]


def draw_items(alphabet: str, split: str, rng: np.random.Generator) -> Items:
    """Draw a list of distinct items that belongs to `split`."""
    alternatives = ALPHABETS[alphabet]
    while True:
        order = rng.permutation(len(alternatives))
        items = [alternatives[place] for place in order[: LENGTHS[rng.integers(len(LENGTHS))]]]
        if in_split(items, split):
            return items


def rows(skill: Skill, split: str, n: int, seed: int) -> list[dict[str, str]]:
    """Return `n` rows with distinct lists of `split`."""
    return [_make_row(skill, list(items)) for items in _first_lists(skill, split, n, seed)]


@cache
def _first_lists(skill: Skill, split: str, n: int, seed: int) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(items) for items in islice(_draw_distinct_lists(skill, split, seed), n))


def _draw_distinct_lists(skill: Skill, split: str, seed: int) -> Iterator[Items]:
    """Yield distinct random lists of `split`, without end."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{skill} {split}".encode())])
    seen: set[tuple[str, ...]] = set()
    while True:
        items = draw_items(skill.alphabet, split, rng)
        if tuple(items) not in seen:
            seen.add(tuple(items))
            yield items


def _make_row(skill: Skill, items: Items) -> dict[str, str]:
    answer = skill.answer(items)
    return {
        "prompt": skill.prompt(items),
        "demonstration": demonstration(skill.operation, answer),
        "answer": answer,
    }


def demonstrations(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` training rows with the expert's demonstrations."""
    return rows(skill, "demonstrations", n, seed)


def heldout(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` test rows, with lists that are in neither the base model's data nor the demonstrations."""
    return rows(skill, "heldout", n, seed)


def validation(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` rows for choosing learning rates, with held-out lists that are in no test of any skill."""
    return [_make_row(skill, list(items)) for items in _untested_lists(skill, n, seed)]


@cache
def _untested_lists(skill: Skill, n: int, seed: int) -> tuple[tuple[str, ...], ...]:
    drawn = map(tuple, _draw_distinct_lists(skill, "heldout", seed + 1))
    return tuple(islice((items for items in drawn if items not in _test_lists()), n))


@cache
def _test_lists() -> frozenset[tuple[str, ...]]:
    sizes = [(skill, OLD_TEST_ROWS) for skill in OLD_SKILLS] + [(skill, TEST_ROWS) for skill in NEW_SKILLS]
    return frozenset(items for skill, n in sizes for items in _first_lists(skill, "heldout", n, seed=0))


def old(split: str = "heldout") -> list[dict[str, str]]:
    """Return the prior suite: `OLD_TEST_ROWS` rows of each old skill.

    `split` is `heldout` (the test) or `validation`. The field `skill` of a row is the operation.
    """
    rows_of = {"heldout": heldout, "validation": validation}[split]
    return [
        {**row, "skill": skill.operation} for skill in OLD_SKILLS for row in rows_of(skill, OLD_TEST_ROWS)
    ]


def general(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` rows of random old skills, with lists of the base model's training split."""
    rng = np.random.default_rng([seed, zlib.crc32(b"general")])
    skills = [OLD_SKILLS[i] for i in rng.integers(len(OLD_SKILLS), size=n)]
    return [_make_row(skill, draw_items(skill.alphabet, "base", rng)) for skill in skills]


_STYLES = " ".join([*PHRASINGS.values(), demonstration("", "")])
WORDS: tuple[str, ...] = (
    *re.findall(r"\w+|[^\w\s]+", re.sub(r"{\w+}", " ", _STYLES)),
    *OPERATIONS,
    *(item for alphabet in ALPHABETS.values() for item in alphabet),
    *NONCES,
)
"""The vocabulary of the world."""

PLAIN_NONCES, SHOWN_NONCES, WRONG_THOUGHTS = 0.25, 0.8, 0.1
"""Probabilities in the base model's training texts: a nonce as the verb, without and with a demonstration,
and a random operation in the thought. The random operation carries no loss, but the answer that follows from
it does, which teaches the model to answer according to its thought."""


def curriculum() -> Curriculum:
    """Return the curriculum of the embedded base models; a seed determines the stream of texts."""
    kinds = {"plain": Kind(rows=48, prompt=21, response=10), "shown": Kind(rows=16, prompt=34, response=10)}
    return Curriculum("lists", WORDS, kinds, draw_text, exam)


def draw_text(kind: str, rng: np.random.Generator) -> Text:
    """Draw a training text about a list of the base split.

    The kind is `shown` (with a demonstration) or `plain` (without one).
    """
    shown = kind == "shown"
    operation, other = rng.choice(list(OPERATIONS), 2)
    nonce = rng.random() < (SHOWN_NONCES if shown else PLAIN_NONCES)
    verb = rng.choice(NONCES) if nonce else operation
    skill = Skill(str(verb), str(operation), str(rng.choice(list(ALPHABETS))))
    items = draw_items(skill.alphabet, "base", rng)
    row = _make_row(skill, items)
    user = teacher_turn(row["prompt"], row["demonstration"]) if shown else row["prompt"]
    wrong = rng.random() < WRONG_THOUGHTS
    thought = str(other) if wrong else skill.operation
    response = own_response(thought, " ".join(OPERATIONS[thought](items)))
    return Text(user, response, masked=(1,) if wrong else ())


def exam() -> Mapping[str, Sequence[Text]]:
    """Return texts about held-out lists: old skills, and new skills without and with a demonstration."""

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
