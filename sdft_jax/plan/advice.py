"""Advice for an update that does not fit: settings that reduce its memory, confirmed by the compiler."""

from __future__ import annotations

import dataclasses

from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import Architecture
from sdft_jax.plan.candidates import Candidate
from sdft_jax.plan.estimate import Estimate, estimate
from sdft_jax.plan.footprint import as_size, update_arrays
from sdft_jax.plan.remedies import Remedy, combined, remedies
from sdft_jax.plan.slices import larger_devices

NEAR = 0.9
"""The share of a device's memory above which advice is given."""
MAX_REMEDIES = 5
"""The maximum number of single changes in the advice."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change of settings, and the memory that the update then needs."""

    text: str
    """The settings with their drawback."""
    needs: float
    """Peak memory after the change, in bytes per device."""
    limit: float
    """The maximum memory of a program, in bytes."""
    compiled: bool
    """True if `needs` is the compiler's number; False if it is the peak minus savings counted from shapes."""

    @property
    def fits(self) -> bool:
        """True if the update then fits."""
        return self.needs <= self.limit

    def __str__(self) -> str:
        difference = as_size(abs(self.limit - self.needs))
        about, verdict = ("", "fits") if self.compiled else ("about ", "should fit")
        result = f"{verdict} with {difference} free" if self.fits else f"{difference} too much"
        return f"{self.text}: needs {about}{as_size(self.needs)}, {result}"


def advise(
    config: Config, architecture: Architecture, current: Estimate, candidate: Candidate, *, compiling: bool
) -> tuple[str, ...]:
    """Return one line for each change of settings, the most effective first.

    If no single change is enough, a line for several changes together follows. The last line for an update
    that does not fit names slices that should hold it.

    Args:
        config: the configuration of the run.
        architecture: the architecture of its model.
        current: the estimate of `candidate`. If it leaves enough memory free, there is no advice.
        candidate: the topology, mesh and rules.
        compiling: True to compile the changes of an update that does not fit until one fits; otherwise all
            numbers are counted from shapes.
    """
    if current.peak <= NEAR * current.limit:
        return ()
    config = dataclasses.replace(config, sharding=candidate.rules)
    model = make_model(config, architecture, candidate.sharding)
    compiling = compiling and not current.fits

    def assess(remedy: Remedy, confirm: bool) -> list[Advice]:
        advice = _confirmed(remedy, architecture, candidate) if confirm else _expected(remedy, current)
        return [] if advice is None else [advice]

    advice: list[Advice] = []
    for remedy in remedies(config, model, update_arrays)[:MAX_REMEDIES]:
        confirmed = any(x.compiled and x.fits for x in advice)
        advice += assess(remedy, compiling and not confirmed)
    if not current.fits and not any(x.fits for x in advice):
        together = combined(config, model, update_arrays, current.peak - current.limit)
        advice += assess(together, compiling) if together else []
    lines = [str(x) for x in advice]
    if not current.fits and not any(x.fits for x in advice):
        lines.append("none of these changes is enough: use more chips")
    if not current.fits and (larger := larger_devices(config, model, update_arrays, current.limit)):
        lines.append(f"without a change, it should fit on {larger}, as counted from shapes")
    return tuple(lines)


def _expected(remedy: Remedy, current: Estimate) -> Advice:
    """Return the advice with the memory that is left after the remedy's savings."""
    return Advice(remedy.text, max(current.peak - remedy.saves, 0.0), current.limit, compiled=False)


def _confirmed(remedy: Remedy, architecture: Architecture, candidate: Candidate) -> Advice | None:
    """Return the advice with the compiler's number; None if the change is not possible."""
    changed = dataclasses.replace(candidate, mesh=remedy.mesh, rules=remedy.config.sharding)
    try:
        result = estimate(remedy.config, architecture, changed)
    except SdftError:  # the mesh does not divide the model or the batch
        return None
    if result.refusal and result.peak <= result.limit:  # refused for a reason other than its size
        return None
    return Advice(remedy.text, result.peak, result.limit, result.compiled)
