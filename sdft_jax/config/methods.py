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
    summary: str
    """The method in a sentence or two, for the card of a model."""
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
    def scores_student(self) -> bool:
        """True if a teacher with a demonstration in its prompt scores the student's samples."""
        return any(phase.context and phase.completions == "student" for phase in self.phases)

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
        Method(
            "sdft",
            "Self-Distillation Fine-Tuning (SDFT): the model answers each prompt, and is trained "
            "to match, token by token, a teacher that scores the same answer with a demonstration"
            " in its context.",
            (Phase("student", "divergence", context=True),),
            teacher="scheduled",
        ),
        Method(
            "sft",
            "Supervised fine-tuning (SFT): cross-entropy of the demonstrations.",
            (_IMITATION,),
            target="demonstration",
        ),
        Method(
            "dft",
            "Dynamic fine-tuning (DFT): cross-entropy of the demonstrations, weighted by the "
            "probability of each token.",
            (Phase("target", "confidence"),),
            target="demonstration",
        ),
        Method(
            "reinvoke",
            "Supervised fine-tuning, then on-policy distillation of the initial model on other prompts.",
            (_IMITATION, Phase("student", "divergence", alpha=1.0)),
            target="demonstration",
            teacher="initial",
            general=True,
        ),
        Method(
            "offline",
            "Cross-entropy of answers that the initial model sampled with a demonstration in context.",
            (Phase("teacher", "cross_entropy", context=True),),
            teacher="initial",
        ),
        # The importance ratio corrects a sampler that differs by rounding; here it would undo the sampling
        # from the teacher.
        Method(
            "offline_kl",
            "Divergence from the initial model with a demonstration in context, on answers that it sampled.",
            (Phase("teacher", "divergence", context=True, importance="log"),),
            teacher="initial",
        ),
        Method(
            "cpt", "Continued pretraining (CPT): cross-entropy of raw texts.", (_IMITATION,), target="text"
        ),
        Method(
            "joint",
            "Supervised fine-tuning on the demonstrations of several tasks at once.",
            (_IMITATION,),
            target="demonstration",
            joint=True,
        ),
        Method("oracle", "None: this is the model before training.", ()),
    )
}


def method_named(name: str) -> Method:
    """Return the method called `name`, which the configuration has already validated."""
    return _METHODS[name]
