"""Rows of the embedded worlds by name, as `data.path=mini:...` asks for them.

| name                       | rows                                                                        |
| -------------------------- | --------------------------------------------------------------------------- |
| `VERB`                     | the new list skill of that verb; empty for the first                        |
| `chains:VERB`              | the new verb of the reasoning world                                         |
| `storms:KIND`              | questions about new storms: direct, pair, ood or questions (the first two)  |
| `storms:articles`          | raw texts on the new storms                                                 |
| `[WORLD:]old`              | the prior suite of a world                                                  |
| `[WORLD:]general`          | prompts of known abilities, none of them in a suite                         |

Each may end in `:SPLIT`, which is `train`, `validation` or `heldout`; any other word means `heldout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.mini import chains, lists, storms

Rows = Sequence[dict[str, Any]]

TRAIN_ROWS, VALIDATION_ROWS, HELDOUT_ROWS, GENERAL_ROWS = 512, 128, 256, 512
"""Rows of a new skill by split, and of the general prompts."""


def read(name: str, split: str) -> Rows:
    """Rows of `name`, whose own split comes before `split`. Raises SdftError for a name that there is not."""
    head, _, rest = name.partition(":")
    if head == "storms":
        return _storms(rest, split)
    if head == "chains":
        return _skills(chains, rest, split, "chains:")
    return _skills(lists, name, split)


def _skills(module: ModuleType, name: str, split: str, prefix: str = "") -> Rows:
    verb, _, own = name.partition(":")
    split = _split(own or split)
    if verb == "old":
        return module.old("validation" if split == "validation" else "heldout")
    if verb == "general":
        return module.general(GENERAL_ROWS)
    skills = {skill.verb: skill for skill in module.NEW_SKILLS}
    if verb and verb not in skills:
        raise _unknown(prefix + name, [prefix + known for known in [*skills, "old", "general"]])
    skill = skills[verb or next(iter(skills))]
    draw = {
        "train": lambda: module.demonstrations(skill, TRAIN_ROWS),
        "validation": lambda: module.validation(skill, VALIDATION_ROWS),
        "heldout": lambda: module.heldout(skill, HELDOUT_ROWS),
    }
    return draw[split]()


def _storms(name: str, split: str) -> Rows:
    part, _, own = name.partition(":")
    split = _split(own or split)
    fixed: dict[str, Callable[[], Rows]] = {
        "articles": storms.articles,
        "general": storms.general,
        "old": lambda: storms.old("validation" if split == "validation" else "heldout"),
    }
    if part in fixed:
        return fixed[part]()
    taught = ("direct", "pair")
    kinds = {kind: (kind,) for kind in storms.QUESTIONS} | {"questions": taught, "": taught}
    if part not in kinds:
        raise _unknown(f"storms:{part}", [f"storms:{x}" for x in [*fixed, *filter(None, kinds)]])
    if split == "train":
        return storms.demonstrations()
    draw = storms.validation if split == "validation" else storms.heldout
    return [row for kind in kinds[part] for row in draw(kind)]


def _split(name: str) -> str:
    return name if name in ("train", "validation") else "heldout"


def _unknown(name: str, known: Sequence[str]) -> SdftError:
    return SdftError(f"mini:{name}: there is no such skill; write mini:SKILL with one of {', '.join(known)}.")
