"""The chain world: chains of list operations that the base model works through step by step.

A prompt asks the model to apply one to three verbs in sequence to a short list of letters or digits:

    first reverse then curtail : a b c d        <think> reverse d c b a ; curtail d c b </think> d c b

The model's own response writes the list after each step. The expert's demonstration has a different style
and contains the answer alone: `= d c b !`.

The base model knows the verbs in `OPERATIONS`. It was also trained on chains that end in one of the made-up
verbs in `NONCES`, with a random meaning in each text. Without a demonstration it guesses an operation and
applies it. With one, it infers the operation that leads to the expert's answer. A new skill gives one nonce a
fixed meaning. One third of its rows are chains of known verbs only, which the base model can already answer.

A hash of its items assigns each list to exactly one of four splits.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdft_jax.mini.curriculum import Curriculum, Kind, Text, teacher_turn
from sdft_jax.mini.lists import Items
from sdft_jax.mini.lists import score as score

# For lists of four or more items, the first two items of the result identify the operation.
OPERATIONS: dict[str, Callable[[Items], Items]] = {
    "reverse": lambda x: x[::-1],
    "rotate": lambda x: x[1:] + x[:1],
    "spin": lambda x: x[2:] + x[:2],
    "swap": lambda x: x[1::-1] + x[2:],
    "curtail": lambda x: x[:-1],
}

ALPHABETS: dict[str, str] = {"letters": "abcdefghijkl", "digits": "0123456789"}
"""Name -> alphabet; each character is an item."""
NONCES: Items = [onset + rhyme for rhyme in ("ax", "ib", "ov", "eem") for onset in ("bl", "dr", "gl", "kl")]

LENGTHS = (4, 5)
"""The possible numbers of items in the list of a prompt."""
MINIMUM = 4
"""The minimum number of items in the list that a step is applied to."""
SPLITS = {"heldout": (0, 2), "validation": (2, 4), "demonstrations": (4, 7), "base": (7, 20)}
OLD_ROWS = {1: 8, 2: 120, 3: 120}
"""Length of a chain -> number of rows in the prior suite; for length 1, per operation and alphabet."""


# The repr of a skill seeds its rows: renaming the class or a field changes the data.
@dataclass(frozen=True)
class Skill:
    """A verb and the operation that it means, for chains on letters."""

    verb: str
    operation: str


NEW_SKILLS: tuple[Skill, ...] = (
    Skill("blax", "rotate"),
    Skill("drib", "reverse"),
    Skill("glov", "swap"),
)


@dataclass(frozen=True)
class Chain:
    """One task: the verbs of the prompt, the operations that they mean, and a list."""

    alphabet: str
    verbs: tuple[str, ...]
    operations: tuple[str, ...]
    items: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The prompt."""
        items = " ".join(self.items)
        if self.alphabet == "letters":
            return f"first {' then '.join(self.verbs)} : {items}"
        return f"digits {items} ; {' , '.join(self.verbs)}"

    @property
    def lists(self) -> list[Items]:
        """The list after each step."""
        lists = [list(self.items)]
        for operation in self.operations:
            lists.append(OPERATIONS[operation](lists[-1]))
        return lists[1:]

    @property
    def answer(self) -> str:
        """The correct answer."""
        return " ".join(self.lists[-1])

    @property
    def response(self) -> str:
        """The response in the model's style: each operation with its result, then the answer."""
        steps = zip(self.operations, self.lists, strict=True)
        thought = " ; ".join(" ".join([operation, *items]) for operation, items in steps)
        return f"<think> {thought} </think> {self.answer}"

    @property
    def row(self) -> dict[str, str]:
        """The row of the task; its demonstration, in the expert's style, contains the answer alone."""
        return {"prompt": self.prompt, "demonstration": f"= {self.answer} !", "answer": self.answer}


def in_split(items: Sequence[str], split: str) -> bool:
    """Return True if a list belongs to `split`, which depends on the list alone and not on the chain."""
    return zlib.crc32(" ".join(items).encode()) % 20 in range(*SPLITS[split])


def draw_chain(
    alphabet: str, steps: int, split: str, rng: np.random.Generator, last: Skill | None = None
) -> Chain:
    """Draw a chain of known verbs on a list of `split`; if `last` is given, the chain ends in its verb."""
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
    """Return `n` distinct chains of two or three verbs on letters.

    Every third chain has known verbs only; the others end in the verb of `skill`.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{skill} {split}".encode())])
    distinct: dict[Chain, None] = {}
    while len(distinct) < n:
        last = None if len(distinct) % 3 == 0 else skill
        distinct[draw_chain("letters", int(rng.integers(2, 4)), split, rng, last)] = None
    return list(distinct)


def demonstrations(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` training rows with the expert's demonstrations."""
    return [chain.row for chain in chains(skill, "demonstrations", n, seed)]


def validation(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` rows for choosing learning rates."""
    return [chain.row for chain in chains(skill, "validation", n, seed)]


def heldout(skill: Skill, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` test rows, with lists that are in neither the base model's data nor the demonstrations."""
    return [chain.row for chain in chains(skill, "heldout", n, seed)]


def old_chains(split: str) -> list[Chain]:
    """Return single operations in both alphabets, and chains on digits; none is a task of a new skill."""
    rng = np.random.default_rng([0, zlib.crc32(f"old {split}".encode())])
    distinct: dict[Chain, None] = {}
    singles = [(alphabet, Skill(name, name)) for alphabet in ALPHABETS for name in OPERATIONS]
    plans = [(alphabet, 1, last) for alphabet, last in singles] + [("digits", n, None) for n in (2, 3)]
    for alphabet, steps, last in plans:
        target = len(distinct) + OLD_ROWS[steps]
        while len(distinct) < target:
            distinct[draw_chain(alphabet, steps, split, rng, last)] = None
    return list(distinct)


def old(split: str = "heldout") -> list[dict[str, str]]:
    """Return the prior suite of 320 rows.

    `split` is `heldout` (the test) or `validation`. The field `skill` of a row is the operation if there is
    one, and the number of operations otherwise.
    """

    def name(chain: Chain) -> str:
        return chain.verbs[0] if len(chain.verbs) == 1 else f"chains of {len(chain.verbs)}"

    return [{**chain.row, "skill": name(chain)} for chain in old_chains(split)]


def general(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` rows of known verbs, with lists of the base model's training split."""
    rng = np.random.default_rng([seed, zlib.crc32(b"general")])
    return [_draw_mixed_chain("base", rng).row for _ in range(n)]


def _draw_mixed_chain(split: str, rng: np.random.Generator, last: Skill | None = None) -> Chain:
    return draw_chain(str(rng.choice(list(ALPHABETS))), int(rng.integers(1, 4)), split, rng, last)


WORDS: tuple[str, ...] = (
    *("first", "then", ":", "digits", ";", ",", "=", "!"),
    *OPERATIONS,
    *(item for alphabet in ALPHABETS.values() for item in alphabet),
    *NONCES,
)
"""The vocabulary of the world."""

PLAIN_NONCES, SHOWN_NONCES, WRONG_THOUGHTS = 0.25, 0.8, 0.1
"""Probabilities in the base model's training texts: a nonce as the last verb, without and with a
demonstration, and a random last operation in the thought. The random operation carries no loss, but the list
and the answer that follow from it do, which teaches the model to answer according to its thought."""


def curriculum() -> Curriculum:
    """Return the curriculum of the base model, which was trained for 1,200 steps of `make_base`.

    Accuracy on held-out lists: 1.0 on chains of known verbs, and 0.987 on chains that end in a nonce if the
    answer is shown. Without the answer, the model names each operation with probability 1/5. It learns to
    infer the meaning of a nonce late, from step 700 on, after the known chains.
    """
    kinds = {
        "plain": Kind(rows=20, prompt=17, response=28),
        "shown": Kind(rows=24, prompt=26, response=28),
        "named": Kind(rows=80, prompt=22, response=3),
    }
    return Curriculum("chains", WORDS, kinds, draw_text, exam)


def draw_text(kind: str, rng: np.random.Generator) -> Text:
    """Draw a training text about a list of the base split.

    The kind is `plain` (without a demonstration), `shown` (with one) or `named`: a single nonce with a
    demonstration, whose response ends after the operation that the nonce means. Only that token carries loss.
    In a full response it is one token of many, which is not enough to learn to use demonstrations.
    """
    skill = Skill(str(rng.choice(NONCES)), str(rng.choice(list(OPERATIONS))))
    if kind == "named":
        chain = draw_chain(str(rng.choice(list(ALPHABETS))), 1, "base", rng, skill)
        return Text(_make_text(chain, shown=True).user, f"<think> {skill.operation}", masked=(0, 2))
    nonce = rng.random() < (SHOWN_NONCES if kind == "shown" else PLAIN_NONCES)
    chain = _draw_mixed_chain("base", rng, skill if nonce else None)
    if rng.random() >= WRONG_THOUGHTS:
        return _make_text(chain, kind == "shown")
    operations = (*chain.operations[:-1], str(rng.choice(list(OPERATIONS))))
    wrong = Chain(chain.alphabet, chain.verbs, operations, chain.items)
    user = _make_text(chain, kind == "shown").user
    return Text(user, wrong.response, masked=(_last_operation_index(wrong),))


def _last_operation_index(chain: Chain) -> int:
    """Return the token index of the last operation in the response.

    Each earlier step consists of its operation, its list and a semicolon.
    """
    return 1 + sum(len(items) + 2 for items in chain.lists[:-1])


def _make_text(chain: Chain, shown: bool) -> Text:
    row = chain.row
    user = teacher_turn(row["prompt"], row["demonstration"]) if shown else row["prompt"]
    return Text(user, chain.response)


def exam() -> Mapping[str, Sequence[Text]]:
    """Return texts about held-out lists: the prior suite, and new skills without and with the answer."""
    new = [chain for skill in NEW_SKILLS for chain in chains(skill, "heldout", 150)]
    nonce = [chain for chain in new if chain.verbs[-1] in NONCES]
    known = [chain for chain in new if chain.verbs[-1] not in NONCES]
    return {
        "prior suite": [_make_text(chain, False) for chain in old_chains("heldout")],
        "new skills, known chains": [_make_text(chain, False) for chain in known],
        "new skills, nonce chains": [_make_text(chain, False) for chain in nonce],
        "new skills, nonce chains, shown": [_make_text(chain, True) for chain in nonce],
    }
