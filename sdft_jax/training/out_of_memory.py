"""A device that has run out of memory: what was on it, and what to change, in place of a stack trace."""

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
from sdft_jax.plan.footprint import SHRUNK_BY, Count, Held, Remedy, as_size, by_kind, fullest, remedies
from sdft_jax.training import bucket
from sdft_jax.training.profiling import DIRECTORY

LARGEST = 8
"""Arrays that are named; all of them are in the table."""


@contextlib.contextmanager
def explained(
    what: str,
    config: Config,
    model: Model,
    count: Count,
    *,
    output: str = "",
    saved: Callable[[], int | None] = lambda: None,
) -> Iterator[None]:
    """Turn an exhausted device inside the block into an SdftError that names arrays, settings and files.

    Args:
        what: what goes on, such as `an update`.
        config, model: as they run.
        count: what is held then.
        output: a run's, which gets a device memory profile and a table of the arrays; without one none are.
        saved: the last step of which there is a checkpoint.

    Raises:
        SdftError: the device's memory is exhausted; whatever else is raised inside is not touched.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        held, found = count(config, model), remedies(config, model, count)
        lines = [f"out of memory in {what}: {reason(error)}", *told(held, found)]
        if output:
            files = write(held, found, reason(error), output)
            step = saved()
            kept = f"the last saved step is {step}" if step else "no step was saved yet"
            lines.append(f"What was written is kept, and {kept}; see {' and '.join(map(str, files))}.")
        raise SdftError("\n".join(lines)) from error


def is_exhausted(error: Exception) -> bool:
    """Whether the compiler or a device says that memory does not suffice; jax 0.7 has no code for some."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def told(held: Sequence[Held], found: Sequence[Remedy]) -> list[str]:
    """The largest arrays, what each kind depends on, and what would help, in lines."""
    phase, total = fullest(held)
    there = sorted((one for one in held if one.phase in ("always", phase)), key=lambda one: -one.bytes)
    limit = _statistics().get("bytes_limit")
    has = f", which has {as_size(limit)}" if limit else ""
    lines = [f"Arrays of known shapes need {as_size(total)} a device{has}; the largest are:"]
    lines += [
        f"  {one.kind} {one.name} {list(one.shape)} {one.dtype}: {as_size(one.bytes)} a device"
        for one in there[:LARGEST]
    ]
    lines.append("By kind, with the settings that it depends on:")
    sizes = sorted(by_kind(there).items(), key=lambda item: -item[1])
    lines += [f"  {kind} {as_size(size)}: {SHRUNK_BY[kind]}" for kind, size in sizes if size > 0.01 * total]
    options = "; ".join(f"{one.text}, about {as_size(one.saves)} less" for one in found[:5])
    lines.append(f"What would make it smaller, counted alone: {options or 'more devices'}.")
    return lines


def write(held: Sequence[Held], found: Sequence[Remedy], why: str, output: str) -> list[Path]:
    """The table of arrays, and the profile that `pprof` reads, of this process; a bucket gets them too."""
    directory = bucket.local(output) / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    number = jax.process_index()
    name = "memory" if number == 0 else f"memory-{number}"
    table, profile = directory / f"{name}.json", directory / f"{name}.prof"
    plain = {
        "error": why,
        "bytes a device": fullest(held)[1],
        "device": _statistics(),
        "arrays": [dataclasses.asdict(one) for one in sorted(held, key=lambda one: -one.bytes)],
        "would save": {one.text: one.saves for one in found},
    }
    table.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    files = [table]
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # not every platform has profiles
        jax.profiler.save_device_memory_profile(str(profile))
        files.append(profile)
    bucket.push(output)
    return files


def _statistics() -> dict[str, int]:
    """What the first local device tells of its memory; a CPU tells nothing."""
    return dict(jax.local_devices()[0].memory_stats() or {})
