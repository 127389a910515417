"""Rows of the built-in tasks by name, as used in `data.path=mini:NAME`.

| name              | rows                                                                                  |
| ----------------- | ------------------------------------------------------------------------------------- |
| `[VERB]`          | the new skill of the list world with that verb (default: the first skill)             |
| `chains[:VERB]`   | the new skill of the chain world with that verb (default: the first skill)            |
| `storms[:KIND]`   | questions about new storms: direct, pair, ood or questions (default: direct and pair) |
| `storms:articles` | articles about the new storms, as raw text                                            |
| `[WORLD:]old`     | the prior suite of a world                                                            |
| `[WORLD:]general` | prompts for old skills; none of them is in a suite                                    |

The kind `questions` is the same as the default. A name may end in `:SPLIT`, which is `train`,
`validation` or `heldout`, which may also be called `test`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.mini import chains, lists, storms

Rows = Sequence[dict[str, Any]]

TRAIN_ROWS, VALIDATION_ROWS, HELDOUT_ROWS, GENERAL_ROWS = 512, 128, 256, 512
"""The number of rows of a new skill in each split, and the number of general prompts."""

SPLITS = {"train": "train", "validation": "validation", "heldout": "heldout", "test": "heldout"}
"""Name of a split -> the split that it selects."""


def read(name: str, split: str) -> Rows:
    """Return the rows of `name`; its own split overrides `split`. Raises SdftError for an unknown name."""
    world, _, rest = name.partition(":")
    if world == "storms":
        return _read_storms(rest, split)
    if world == "chains":
        return _read_skill(chains, rest, split, "chains:")
    return _read_skill(lists, name, split)


def _read_skill(module: ModuleType, name: str, split: str, prefix: str = "") -> Rows:
    verb, _, split_in_name = name.partition(":")
    split = _canonical_split(split_in_name or split)
    if verb == "old":
        return module.old("validation" if split == "validation" else "heldout")
    if verb == "general":
        return module.general(GENERAL_ROWS)
    skills = {skill.verb: skill for skill in module.NEW_SKILLS}
    if verb and verb not in skills:
        raise _unknown_name(prefix + name, [prefix + valid for valid in [*skills, "old", "general"]])
    skill = skills[verb or next(iter(skills))]
    readers = {
        "train": lambda: module.demonstrations(skill, TRAIN_ROWS),
        "validation": lambda: module.validation(skill, VALIDATION_ROWS),
        "heldout": lambda: module.heldout(skill, HELDOUT_ROWS),
    }
    return readers[split]()


def _read_storms(name: str, split: str) -> Rows:
    kind_or_set, _, split_in_name = name.partition(":")
    split = _canonical_split(split_in_name or split)
    named_sets: dict[str, Callable[[], Rows]] = {
        "articles": storms.articles,
        "general": storms.general,
        "old": lambda: storms.old("validation" if split == "validation" else "heldout"),
    }
    if kind_or_set in named_sets:
        return named_sets[kind_or_set]()
    taught_kinds = ("direct", "pair")
    kinds = {kind: (kind,) for kind in storms.QUESTIONS} | {"questions": taught_kinds, "": taught_kinds}
    if kind_or_set not in kinds:
        valid_names = [f"storms:{valid}" for valid in [*named_sets, *filter(None, kinds)]]
        raise _unknown_name(f"storms:{kind_or_set}", valid_names)
    if split == "train":
        return storms.demonstrations()
    read_kind = storms.validation if split == "validation" else storms.heldout
    return [row for kind in kinds[kind_or_set] for row in read_kind(kind)]


def _canonical_split(name: str) -> str:
    if name not in SPLITS:
        raise SdftError(
            f"the built-in tasks have no split {name!r}: give {', '.join(SPLITS)} in data.split or in "
            "mini:SKILL:SPLIT."
        )
    return SPLITS[name]


def _unknown_name(name: str, valid_names: Sequence[str]) -> SdftError:
    choices = ", ".join(valid_names)
    return SdftError(f"mini:{name}: there is no such skill; set SKILL in mini:SKILL to one of {choices}.")
