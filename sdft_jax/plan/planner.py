"""The estimates of a configuration on several meshes, ranked, with the largest batch of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import Architecture
from sdft_jax.plan.advice import advise
from sdft_jax.plan.candidates import Candidate, make_candidates
from sdft_jax.plan.estimate import Estimate, estimate
from sdft_jax.plan.program import model_shape


def plan_update(config: Config, topology: str, mesh: str | None = None) -> Estimate:
    """Return the memory, time and communication of one update on a TPU topology, without a TPU.

    Args:
        config: the configuration of the run; no weights are read.
        topology: the name of a topology, such as v5e-16.
        mesh: `data=N,fsdp=N,tensor=N,expert=N` (each is optional, and one may be -1); None for the
            configuration's mesh; `all` for the best of all meshes: the fastest that fits.

    Raises:
        SdftError: the topology, the mesh or the model is not valid, no mesh divides both the model and the
            batch, or the TPU compiler is not installed.
    """
    candidates = make_candidates(config, [topology], mesh, ())
    estimates, left_out = plan(config, candidates, largest=False, show=lambda done, name: None)
    if not estimates:
        raise SdftError(f"no mesh of {topology} is possible: {left_out[0]}")
    return estimates[0]


def plan(
    config: Config, candidates: Sequence[Candidate], largest: bool, show: Callable[[int, str], None]
) -> tuple[list[Estimate], list[str]]:
    """Return estimates by topology, the best first, and the reasons that other candidates were left out.

    The best estimate of each topology has advice if its memory is scarce.

    Args:
        config: the configuration of the run.
        candidates: from `make_candidates`.
        largest: also estimate the largest batch and confirm the advice, which compiles more programs.
        show: called with the number of finished candidates and a description of the work in progress.

    Raises:
        SdftError: the mesh of the only candidate does not divide the model or the batch.
    """
    architecture = model_shape(config)
    results: list[tuple[Estimate, Candidate]] = []
    left_out: list[str] = []
    for done, candidate in enumerate(candidates):
        show(done, candidate.name)
        try:
            results.append((_estimate_one(config, architecture, candidate, largest), candidate))
        except SdftError as error:
            if len(candidates) == 1:
                raise
            left_out.append(f"{candidate.name}: {error}")
    results.sort(key=lambda result: _rank(result[0]))
    estimates: list[Estimate] = []
    for current, candidate in results:
        if all(better.topology != current.topology for better in estimates):
            show(len(candidates), f"{current.topology}: advice")
            advice = advise(config, architecture, current, candidate, compiling=largest)
            current = dataclasses.replace(current, advice=advice)
        estimates.append(current)
    show(len(candidates), "")
    return estimates, left_out


def largest_batch(first: Estimate, second: Estimate) -> int | None:
    """Return the largest batch size whose memory fits, by the line through the peaks of two batch sizes.

    It is a multiple of the number of parts that the mesh splits a batch into. Return None if the peak does
    not grow with the batch.
    """
    per_row = (second.peak - first.peak) / (second.batch - first.batch)
    if per_row <= 0:
        return None
    rows = first.batch + (first.limit - first.peak) / per_row
    parts = _batch_parts(first)
    return max(int(rows // parts) * parts, 0)


def _rank(result: Estimate) -> tuple[Any, ...]:
    """Return the sort key: by topology, then estimates that fit by time, then the others by peak memory."""
    return (
        result.topology,
        not result.fits,
        result.total_seconds if result.fits else result.peak,
        result.state,
    )


def _estimate_one(
    config: Config, architecture: Architecture, candidate: Candidate, largest: bool
) -> Estimate:
    """Return the estimate of a candidate, with its largest batch if `largest`."""
    first = estimate(config, architecture, candidate)
    if not largest or first.state > first.limit:
        return first
    batch = _second_batch(first)
    second = estimate(_with_batch(config, batch), architecture, candidate) if batch else None
    if second is None or not (first.compiled and second.compiled):
        return dataclasses.replace(first, largest_batch=first.batch if first.fits else None)
    return dataclasses.replace(first, largest_batch=largest_batch(first, second))


def _second_batch(first: Estimate) -> int | None:
    """Return twice the batch size if it fits, otherwise half of it; None if the mesh does not divide that."""
    if first.fits:
        return 2 * first.batch
    half = first.batch // 2
    return half if half and half % _batch_parts(first) == 0 else None


def _batch_parts(result: Estimate) -> int:
    return result.mesh["data"] * result.mesh["fsdp"] * result.mesh.get("expert", 1)


def _with_batch(config: Config, batch: int) -> Config:
    micro = config.train.micro_batch
    if micro and batch % micro:
        micro = batch
    train = dataclasses.replace(config.train, batch_size=batch, micro_batch=micro)
    return dataclasses.replace(config, train=train)
