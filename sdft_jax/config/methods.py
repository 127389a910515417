"""The training methods as data: the table behind `train.method`.

| method       | completions                  | loss                                    | source             |
| ------------ | ---------------------------- | --------------------------------------- | ------------------ |
| `sdft`       | the student's samples        | divergence from the teacher, which sees | paper, Algorithm 1 |
|              |                              | the demonstration                       |                    |
| `sft`        | demonstrations               | cross-entropy                           | paper, baseline    |
| `dft`        | demonstrations               | cross-entropy weighted by p(token)      | arXiv 2508.05629   |
| `reinvoke`   | demonstrations; then the     | cross-entropy; then the reverse KL from | paper, Table 5     |
|              | student's samples            | the initial model, on `data.general`    |                    |
| `offline`    | the initial teacher's        | cross-entropy                           | paper, Figure 6    |
|              | samples                      |                                         |                    |
| `offline_kl` | the initial teacher's        | divergence from that teacher            | paper, Figure 6    |
|              | samples                      |                                         |                    |
| `cpt`        | raw texts, without a prompt  | cross-entropy                           | paper, Table 1     |
| `joint`      | demonstrations of all stages | cross-entropy                           | multi-task ceiling |
| `oracle`     | none: nothing is trained     | the model with the demonstration in     | paper, Table 1     |
|              |                              | context is evaluated                    |                    |
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from sdft_jax.errors import SdftError

MethodName = Literal["sdft", "sft", "dft", "reinvoke", "offline", "offline_kl", "cpt", "joint", "oracle"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """The update on one kind of batch."""

    completions: Literal["student", "teacher", "target"]
    """The completions that are scored: samples of a role, or the batch's targets."""
    loss: Literal["divergence", "cross_entropy", "confidence"]
    """The divergence from the teacher's distributions; the cross-entropy of the completions' tokens; or that
    cross-entropy weighted by each token's own probability (Dynamic Fine-Tuning)."""
    context: bool = False
    """True if the teacher sees the demonstration; otherwise its prompt is the student's."""
    alpha: float | None = None
    """The divergence's direction, if the method fixes it; None for `divergence.alpha`."""
    importance: Literal["log"] | None = None
    """The use of importance ratios, if the method fixes it; None for `objective.importance`."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method; `Config.method` is that of a configuration."""

    name: str
    phases: tuple[Phase, ...]
    """One phase; two, of which the first trains on targets and the second samples; or none for no
    training."""
    target: Literal["demonstration", "text"] | None = None
    """The field of a row that becomes its target completion."""
    teacher: Literal["scheduled", "initial"] | None = None
    """The teacher's weights: those of the `teacher` section, the initial ones, or no teacher."""
    general: bool = False
    """True if the second phase trains on the prompts of `data.general`."""
    joint: bool = False
    """True if a continual run trains on the rows of all stages at once."""

    @property
    def trains(self) -> bool:
        """True if the method changes the model."""
        return bool(self.phases)

    @property
    def context(self) -> bool:
        """True if a row's teacher prompt holds its demonstration."""
        return any(phase.context for phase in self.phases)

    @property
    def sampler(self) -> Literal["student", "teacher"] | None:
        """The role that samples completions, or None if the method only scores targets."""
        roles = [phase.completions for phase in self.phases if phase.completions != "target"]
        return roles[0] if roles else None

    def phase(self, has_target: bool) -> Phase:
        """Return the phase for a batch that has targets or not.

        Raises:
            SdftError: the method does not train.
        """
        if not self.phases:
            raise SdftError(f"train.method={self.name} does not train: there is no update for it.")
        return self.phases[0] if has_target else self.phases[-1]


_IMITATION = Phase("target", "cross_entropy")
_METHODS = {
    method.name: method
    for method in (
        Method("sdft", (Phase("student", "divergence", context=True),), teacher="scheduled"),
        Method("sft", (_IMITATION,), target="demonstration"),
        Method("dft", (Phase("target", "confidence"),), target="demonstration"),
        Method(
            "reinvoke",
            (_IMITATION, Phase("student", "divergence", alpha=1.0)),
            target="demonstration",
            teacher="initial",
            general=True,
        ),
        Method("offline", (Phase("teacher", "cross_entropy", context=True),), teacher="initial"),
        # The importance ratio corrects a sampler that differs by rounding; here it would undo the sampling
        # from the teacher.
        Method(
            "offline_kl",
            (Phase("teacher", "divergence", context=True, importance="log"),),
            teacher="initial",
        ),
        Method("cpt", (_IMITATION,), target="text"),
        Method("joint", (_IMITATION,), target="demonstration", joint=True),
        Method("oracle", ()),
    )
}


def method_named(name: str) -> Method:
    """Return the method called `name`, which the configuration has already validated."""
    return _METHODS[name]
