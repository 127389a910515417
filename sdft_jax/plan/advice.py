"""What would make an update that does not fit smaller, and whether the compiler agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sdft_jax.algorithm.state import make_model
from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import ModelConfig
from sdft_jax.plan.estimate import Estimate, estimate
from sdft_jax.plan.footprint import Remedy, as_size, combined, remedies, update_arrays
from sdft_jax.plan.topologies import Topology
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.sharding.rules import Rules

NEAR = 0.9
"""Share of a device's memory from which on advice is given."""
TRIED = 5
"""Settings that are named."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """A setting, what would then be needed, and who says so."""

    setting: str
    needs: float
    """Bytes a device."""
    limit: float
    compiled: bool
    """Whether the compiler says so; else it is the peak less what arrays of known shapes would save."""

    @property
    def fits(self) -> bool:
        """Whether everything would find room."""
        return self.needs <= self.limit

    def __str__(self) -> str:
        room = as_size(abs(self.limit - self.needs))
        about, verdict = ("", "fits") if self.compiled else ("about ", "should fit")
        found = f"{verdict} with {room} free" if self.fits else f"{room} too much"
        return f"{self.setting}: needs {about}{as_size(self.needs)}, {found}"


def advise(
    config: Config,
    shape: ModelConfig,
    one: Estimate,
    topology: Topology,
    devices: Sequence[Any],
    rules: Rules,
    *,
    compiling: bool,
) -> tuple[str, ...]:
    """A line for each setting, the most effective first, and for several at once where none suffices alone.

    Args:
        config, shape, topology, devices, rules: what `one` was estimated of.
        one: an estimate; where it leaves room, nothing is advised.
        compiling: where it does not fit, ask the compiler until it says of one setting that it does.
    """
    if one.peak <= NEAR * one.limit:
        return ()
    config = dataclasses.replace(config, sharding=rules)
    model = make_model(config, shape, Sharding(make_mesh(**one.mesh, devices=devices), rules))

    def compiled(remedy: Remedy) -> Estimate:
        changed = remedy.config
        return estimate(changed, shape, topology, devices, remedy.mesh, changed.sharding, one.rules)

    ask = compiled if compiling and not one.fits else None
    found: list[Advice] = []
    for remedy in remedies(config, model, update_arrays)[:TRIED]:
        found += _judged(one, remedy, None if any(x.compiled and x.fits for x in found) else ask)
    if not one.fits and not any(x.fits for x in found):
        several = combined(config, model, update_arrays, one.peak - one.limit)
        found += _judged(one, several, ask) if several else []
    if not one.fits and not any(x.fits for x in found):
        return (*map(str, found), "none of these suffices, so take more chips")
    return tuple(map(str, found))


def _judged(one: Estimate, remedy: Remedy, ask: Callable[[Remedy], Estimate] | None) -> list[Advice]:
    """What the compiler says of it, or what is to be expected; nothing where it is impossible."""
    if ask is None:
        return [Advice(remedy.text, max(one.peak - remedy.saves, 0.0), one.limit, compiled=False)]
    try:
        then = ask(remedy)
    except SdftError:  # the mesh does not divide it
        return []
    if then.refusal and then.peak <= then.limit:  # refused for something else than its size
        return []
    known_only = then.refusal.startswith("not compiled")
    return [Advice(remedy.text, then.peak, then.limit, compiled=not known_only)]
