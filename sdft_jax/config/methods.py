"""What each training method reads: the table behind `train.method`. The updates are in `baselines/`.

| method       | scored completions           | target                             | source                |
| ------------ | ---------------------------- | ---------------------------------- | --------------------- |
| `sdft`       | the student's samples        | teacher shown the demonstration    | the paper's Alg. 1    |
| `sft`        | demonstrations               | their tokens                       | the paper's baseline  |
| `dft`        | demonstrations               | their tokens, weighted by p(token) | arXiv 2508.05629      |
| `reinvoke`   | as sft, then student samples | their tokens, then the base model  | the paper's Table 5   |
| `offline`    | the teacher's samples        | their tokens                       | the paper's Figure 6  |
| `offline_kl` | the teacher's samples        | teacher shown the demonstration    | the paper's Figure 6  |
| `cpt`        | raw texts, no prompt         | their tokens                       | the paper's Table 1   |
| `joint`      | all stages' demonstrations   | their tokens                       | multi-task ceiling    |
| `oracle`     | nothing is trained           | demonstration in context           | the paper's Table 1   |

The paper's teacher of the offline methods is the initial model; so it is here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

MethodName = Literal["sdft", "sft", "dft", "reinvoke", "offline", "offline_kl", "cpt", "joint", "oracle"]


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method needs besides prompts."""

    completion: Literal["demonstration", "text"] | None = None
    """Field that becomes completion tokens to be imitated."""
    context: bool = False
    """Whether a teacher is shown the demonstration."""
    teacher: Literal["own", "frozen"] | None = None
    """Weights that teach: those of the `teacher` section, the initial ones, or none."""
    general: bool = False
    """Whether it trains on the prompts of data.general too."""
    samples: Literal["student", "teacher"] | None = None
    """Whose completions its update samples, if any's."""


METHODS: dict[str, Method] = {
    "sdft": Method(context=True, teacher="own", samples="student"),
    "sft": Method(completion="demonstration"),
    "dft": Method(completion="demonstration"),
    "reinvoke": Method(completion="demonstration", teacher="frozen", general=True, samples="student"),
    "offline": Method(context=True, teacher="frozen", samples="teacher"),
    "offline_kl": Method(context=True, teacher="frozen", samples="teacher"),
    "cpt": Method(completion="text"),
    "joint": Method(completion="demonstration"),
    "oracle": Method(),
}
