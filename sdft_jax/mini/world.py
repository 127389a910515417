"""The mini world: list skills that a model of under a million parameters can know, and ones to teach it.

A prompt asks for a verb to be applied to a short list, in one of four alphabets, each with its own phrasing:

    please reverse the letters a b c d              <think> reverse </think> d c b a

The base model knows every verb in `OPERATIONS`, in every alphabet: these are the old skills. It thinks
first: it names the operation, then carries it out. It has also met the verbs in `NONCES`, each time with
another meaning, so it has learned to follow an expert's demonstration when there is one, and can only guess
when there is none. A new skill gives one nonce one meaning for good. The expert demonstrates it in a style
of its own, `by reverse = d c b a !`.

Every list belongs to exactly one of three splits by a hash of its items: what the base model was trained on,
what is demonstrated and what is held out never share a list, whatever the skill.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
    rng = np.random.default_rng([seed, zlib.crc32(f"{skill} {split}".encode())])
    lists: dict[str, Items] = {}
    while len(lists) < n:
        items = draw_items(skill.alphabet, split, rng)
        lists[" ".join(items)] = items
    return [_row(skill, items) for items in lists.values()]


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
