"""The reasoning world: chains of list operations that the base model thinks through step by step.

A prompt asks for one to three verbs to be applied in turn to a short list of letters or digits:

    first reverse then curtail : a b c d        <think> reverse d c b a ; curtail d c b </think> d c b

The model's own response writes the list down after every step; the expert's demonstration is the answer
alone, in a style of its own, `= d c b !`. The base model knows the verbs in `OPERATIONS`. It has met those
in `NONCES` as last verbs, each time with another meaning: without a demonstration it guesses an operation
and carries it out; with one, it finds the operation that leads to the expert's answer. A new skill gives one
nonce one meaning for good; a third of its rows are chains of known verbs only, so part of it is known.

Every list belongs to exactly one of four splits by a hash of its items.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdft_jax.mini.curriculum import Curriculum, Kind, Text, teacher_turn
from sdft_jax.mini.lists import Items
from sdft_jax.mini.lists import score as score

# From four items on, the first two of the result tell which operation it was.
OPERATIONS: dict[str, Callable[[Items], Items]] = {
    "reverse": lambda x: x[::-1],
    "rotate": lambda x: x[1:] + x[:1],
    "spin": lambda x: x[2:] + x[:2],
    "swap": lambda x: x[1::-1] + x[2:],
    "curtail": lambda x: x[:-1],
}

ALPHABETS: dict[str, str] = {"letters": "abcdefghijkl", "digits": "0123456789"}
"""The items of an alphabet are its characters."""
NONCES: Items = [onset + rhyme for rhyme in ("ax", "ib", "ov", "eem") for onset in ("bl", "dr", "gl", "kl")]

LENGTHS = (4, 5)
"""Items in the list of a prompt."""
MINIMUM = 4
"""Fewest items that a step starts from."""
SPLITS = {"heldout": (0, 2), "validation": (2, 4), "demonstrations": (4, 7), "base": (7, 20)}
OLD_ROWS = {1: 8, 2: 120, 3: 120}
"""Rows of the prior suite: for every single operation of an alphabet, and for chains of two and three."""


@dataclass(frozen=True)
class Skill:
    """A nonce with one meaning, asked for in chains on letters."""

    verb: str
    operation: str


NEW_SKILLS: tuple[Skill, ...] = (
    Skill("blax", "rotate"),
    Skill("drib", "reverse"),
    Skill("glov", "swap"),
)


@dataclass(frozen=True)
class Chain:
    """One task: verbs as they are asked for, the operations that they mean, and a list."""

    alphabet: str
    verbs: tuple[str, ...]
    operations: tuple[str, ...]
    items: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the user asks."""
        items = " ".join(self.items)
        if self.alphabet == "letters":
            return f"first {' then '.join(self.verbs)} : {items}"
        return f"digits {items} ; {' , '.join(self.verbs)}"

    @property
    def lists(self) -> list[Items]:
        """The list after every step."""
        result = [list(self.items)]
        for operation in self.operations:
            result.append(OPERATIONS[operation](result[-1]))
        return result[1:]

    @property
    def answer(self) -> str:
        """What is right."""
        return " ".join(self.lists[-1])

    @property
    def response(self) -> str:
        """The model's own style: each operation with the list that it leads to, then the answer."""
        steps = zip(self.operations, self.lists, strict=True)
        thought = " ; ".join(" ".join([operation, *items]) for operation, items in steps)
        return f"<think> {thought} </think> {self.answer}"

    @property
    def row(self) -> dict[str, str]:
        """A row for a data source; the demonstration is in the expert's style: the answer alone."""
        return {"prompt": self.prompt, "demonstration": f"= {self.answer} !", "answer": self.answer}


def in_split(items: Sequence[str], split: str) -> bool:
    """Splits are by list alone, so a list held out is held out for every chain."""
    return zlib.crc32(" ".join(items).encode()) % 20 in range(*SPLITS[split])


def draw_chain(
    alphabet: str, steps: int, split: str, rng: np.random.Generator, last: Skill | None = None
) -> Chain:
    """A random chain on a list of `split`, of known verbs, or ending in `last`."""
    while True:
        items = tuple(map(str, rng.permutation(list(ALPHABETS[alphabet]))[: rng.choice(LENGTHS)]))
        operations = tuple(map(str, rng.choice(list(OPERATIONS), steps)))
        verbs = operations
        if last is not None:
            operations, verbs = (*operations[:-1], last.operation), (*operations[:-1], last.verb)
        chain = Chain(alphabet, verbs, operations, items)
        if in_split(items, split) and all(len(x) >= MINIMUM for x in [items, *chain.lists[:-1]]):
            return chain


def chains(skill: Skill, split: str, n: int, seed: int = 0) -> list[Chain]:
    """`n` distinct chains of two or three verbs on letters: every third known, the rest ending in `skill`."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{skill} {split}".encode())])
    found: dict[Chain, None] = {}
    while len(found) < n:
        last = None if len(found) % 3 == 0 else skill
        found[draw_chain("letters", int(rng.integers(2, 4)), split, rng, last)] = None
    return list(found)


def demonstrations(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What the expert shows: rows to train on."""
    return [chain.row for chain in chains(skill, "demonstrations", n, seed)]


def validation(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What learning rates are chosen on."""
    return [chain.row for chain in chains(skill, "validation", n, seed)]


def heldout(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """What the learner is examined on: lists that neither the base model nor any demonstration has used."""
    return [chain.row for chain in chains(skill, "heldout", n, seed)]


def old_chains(split: str) -> list[Chain]:
    """Single operations in both alphabets, and chains of digits: none is a task of a new skill."""
    rng = np.random.default_rng([0, zlib.crc32(f"old {split}".encode())])
    found: dict[Chain, None] = {}
    singles = [(alphabet, Skill(name, name)) for alphabet in ALPHABETS for name in OPERATIONS]
    plans = [(alphabet, 1, last) for alphabet, last in singles] + [("digits", n, None) for n in (2, 3)]
    for alphabet, steps, last in plans:
        goal = len(found) + OLD_ROWS[steps]
        while len(found) < goal:
            found[draw_chain(alphabet, steps, split, rng, last)] = None
    return list(found)


def old(split: str = "heldout") -> list[dict[str, str]]:
    """The prior suite, 320 rows; `split` is `heldout`, the test, or `validation`.

    `skill` of a row is the operation, or how many there are.
    """

    def name(chain: Chain) -> str:
        return chain.verbs[0] if len(chain.verbs) == 1 else f"chains of {len(chain.verbs)}"

    return [{**chain.row, "skill": name(chain)} for chain in old_chains(split)]


def general(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` rows of known verbs on lists that the base model was trained on."""
    rng = np.random.default_rng([seed, zlib.crc32(b"general")])
    return [_any_chain("base", rng).row for _ in range(n)]


def _any_chain(split: str, rng: np.random.Generator, last: Skill | None = None) -> Chain:
    return draw_chain(str(rng.choice(list(ALPHABETS))), int(rng.integers(1, 4)), split, rng, last)


WORDS: tuple[str, ...] = (
    *("first", "then", ":", "digits", ";", ",", "=", "!"),
    *OPERATIONS,
    *(item for alphabet in ALPHABETS.values() for item in alphabet),
    *NONCES,
)
"""Vocabulary of the world."""

PLAIN_NONCES, SHOWN_NONCES, WRONG_THOUGHTS = 0.25, 0.8, 0.1
"""Shares in the base model's training: of chains that end in a nonce, without and with a demonstration, and
of responses whose last operation is a random one without loss, so that answers follow thoughts."""


def curriculum() -> Curriculum:
    """What the base model is trained on, in 1,200 steps of `make_base`.

    On held-out lists: known chains 1.0, nonces with the answer shown 0.987; without, each operation is
    thought of with probability 1/5. Meanings are found late, from step 700 on, after the known chains.
    """
    kinds = {
        "plain": Kind(rows=20, prompt=17, response=28),
        "shown": Kind(rows=24, prompt=26, response=28),
        "named": Kind(rows=80, prompt=22, response=3),
    }
    return Curriculum("chains", WORDS, kinds, draw_text, exam)


def draw_text(kind: str, rng: np.random.Generator) -> Text:
    """A conversation about a list of the base split: `plain`, or `shown` with a demonstration.

    `named` is a shown nonce by itself, cut after the operation that it means. That alone carries loss: it is
    but one token of a whole response, too little to learn to understand demonstrations from.
    """
    skill = Skill(str(rng.choice(NONCES)), str(rng.choice(list(OPERATIONS))))
    if kind == "named":
        chain = draw_chain(str(rng.choice(list(ALPHABETS))), 1, "base", rng, skill)
        return Text(_text(chain, shown=True).user, f"<think> {skill.operation}", unlearned=(0, 2))
    nonce = rng.random() < (SHOWN_NONCES if kind == "shown" else PLAIN_NONCES)
    chain = _any_chain("base", rng, skill if nonce else None)
    if rng.random() >= WRONG_THOUGHTS:
        return _text(chain, kind == "shown")
    other = (*chain.operations[:-1], str(rng.choice(list(OPERATIONS))))
    wrong = Chain(chain.alphabet, chain.verbs, other, chain.items)
    return Text(_text(chain, kind == "shown").user, wrong.response, unlearned=(_last_name(wrong),))


def _last_name(chain: Chain) -> int:
    """Index of the last operation in the response; a step before takes its name, its list and a semicolon."""
    return 1 + sum(len(items) + 2 for items in chain.lists[:-1])


def _text(chain: Chain, shown: bool) -> Text:
    row = chain.row
    user = teacher_turn(row["prompt"], row["demonstration"]) if shown else row["prompt"]
    return Text(user, chain.response)


def exam() -> Mapping[str, Sequence[Text]]:
    """Held-out lists: the prior suite, and chains that end in each new skill, without and with the answer."""
    new = [chain for skill in NEW_SKILLS for chain in chains(skill, "heldout", 150)]
    nonce = [chain for chain in new if chain.verbs[-1] in NONCES]
    known = [chain for chain in new if chain.verbs[-1] not in NONCES]
    return {
        "prior suite": [_text(chain, False) for chain in old_chains("heldout")],
        "new skills, known chains": [_text(chain, False) for chain in known],
        "new skills, nonce chains": [_text(chain, False) for chain in nonce],
        "new skills, nonce chains, shown": [_text(chain, True) for chain in nonce],
    }
