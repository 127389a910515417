"""Out of memory: the largest arrays and the settings that reduce them, instead of a stack trace."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from sdft_jax.config import Config
from sdft_jax.errors import SdftError, reason
from sdft_jax.models import Model
from sdft_jax.plan.footprint import (
    DEPENDS_ON,
    ArrayFootprint,
    Count,
    as_size,
    by_kind,
    least_arrays,
    peak_phase,
    state_arrays,
)
from sdft_jax.plan.remedies import Remedy, remedies
from sdft_jax.plan.slices import larger_devices
from sdft_jax.training.run_directory import RunDirectory

LARGEST = 8
"""Number of arrays in the message; the table has all of them."""


def refuse_too_large(config: Config, model: Model, count: Count) -> None:
    """Raise SdftError if a device cannot hold the training state, or it and the KV cache, before weights are
    read or compiled for.

    The state is in memory during the whole run, and the cache beside it while an update samples, so that no
    run that fits is refused. A CPU has no limit.

    Args:
        config: the configuration of the run.
        model: the model on the devices of the run.
        count: returns the arrays of an update.
    """
    limit = _statistics().get("bytes_limit")
    least: dict[str, Count] = {
        "the training state alone needs": state_arrays,
        "the training state and the KV cache alone need": least_arrays,
    }
    sizes = {what: peak_phase(arrays(config, model))[1] for what, arrays in least.items()}
    what = next((what for what, size in sizes.items() if limit and size > limit), None)
    if not limit or what is None:
        return
    larger = larger_devices(config, model, count, limit)
    options = [f"use {larger}"] if larger else []
    for one in remedies(config, model, least[what])[:3]:
        options.append(f"set {one.text}, about {as_size(one.saves)} less")
    kind = model.sharding.device.device_kind
    raise SdftError(
        f"{what} {as_size(sizes[what])} per device, and {kind} has {as_size(limit)}: "
        f"{', or '.join(options) or 'use more devices'}."
    )


@contextlib.contextmanager
def explained(
    what: str,
    config: Config,
    model: Model,
    count: Count,
    *,
    directory: RunDirectory | None = None,
    saved: Callable[[], int | None] = lambda: None,
) -> Iterator[None]:
    """Raise SdftError if a device runs out of memory inside the block; other exceptions propagate.

    Args:
        what: the work inside the block, such as `an update`.
        config: the configuration of the run.
        model: the model that the block runs.
        count: returns the arrays in memory.
        directory: receives a device memory profile and a table of the arrays; None to write none.
        saved: returns the last step with a checkpoint.

    Raises:
        SdftError: a device ran out of memory; the message names the devices that should hold the run, the
            largest arrays, the settings that reduce them, and the files that were written.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        arrays, options = count(config, model), remedies(config, model, count)
        lines = explanation(arrays, options)
        limit = _statistics().get("bytes_limit")
        larger = larger_devices(config, model, count, limit) if limit else ""
        fits = f"; without a change, it should fit on {larger}, as counted from shapes." if larger else ""
        if directory:
            step = saved()
            progress = f"The last saved step is {step}" if step else "No step was saved"
            try:
                files = write_tables(arrays, options, reason(error), directory)
                lines.append(f"{progress}; details are in {' and '.join(map(str, files))}.")
            except OSError as failure:  # memory may not be all that has run out
                lines.append(f"{progress}; details cannot be written ({reason(failure)}).")
        raise SdftError(f"out of memory in {what}: {reason(error)}{fits}", *lines) from error


def is_exhausted(error: Exception) -> bool:
    """Return True for an out-of-memory error of the compiler or a device; some have no status code in
    jax 0.7.
    """
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def explanation(arrays: Sequence[ArrayFootprint], options: Sequence[Remedy]) -> list[str]:
    """Return lines with the largest arrays, the settings that each kind depends on, and what would reduce
    memory.
    """
    phase, total = peak_phase(arrays)
    present = sorted((one for one in arrays if one.phase in ("always", phase)), key=lambda one: -one.bytes)
    limit = _statistics().get("bytes_limit")
    of = f" of {as_size(limit)}" if limit else ""
    lines = [f"Arrays of known shapes need {as_size(total)}{of} per device; the largest are:"]
    lines += [
        f"  {one.kind} {one.name} {list(one.shape)} {one.dtype}: {as_size(one.bytes)} per device"
        for one in present[:LARGEST]
    ]
    lines.append("By kind, with the settings that reduce it:")
    sizes = sorted(by_kind(present).items(), key=lambda item: -item[1])
    lines += [f"  {kind} {as_size(size)}: {DEPENDS_ON[kind]}" for kind, size in sizes if size > 0.01 * total]
    suggestions = "; ".join(f"{one.text}, about {as_size(one.saves)} less" for one in options[:5])
    lines.append(f"Changes that reduce memory, each counted alone: {suggestions or 'more devices'}.")
    return lines


def write_tables(
    arrays: Sequence[ArrayFootprint], options: Sequence[Remedy], why: str, directory: RunDirectory
) -> list[Path]:
    """Write this process's table of arrays, and the profile that `pprof` reads."""
    directory.profile.mkdir(parents=True, exist_ok=True)
    number = jax.process_index()
    name = "memory" if number == 0 else f"memory-{number}"
    table, profile = directory.profile / f"{name}.json", directory.profile / f"{name}.prof"
    content = {
        "error": why,
        "bytes per device": peak_phase(arrays)[1],
        "device": _statistics(),
        "arrays": [dataclasses.asdict(one) for one in sorted(arrays, key=lambda one: -one.bytes)],
        "would save": {one.text: one.saves for one in options},
    }
    table.write_text(json.dumps(content, indent=1), encoding="utf-8")
    files = [table]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # not every platform has profiles
        jax.profiler.save_device_memory_profile(str(profile))
        files.append(profile)
    directory.push()
    return files


def _statistics() -> dict[str, int]:
    """Return the memory statistics of the first local device; a CPU has none."""
    return dict(jax.local_devices()[0].memory_stats() or {})
