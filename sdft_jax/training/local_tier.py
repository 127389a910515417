"""Frequent checkpoints on each host's own disk or memory, with copies of its shards on the next host.

A host that is preempted loses its disk. The others still have all shards: their own, and copies of those that
are lost. The devices exchange the shards, so that a copy takes no network between hosts. Checkpoints in
`output` remain: these ones do not survive the loss of two neighboring hosts, or a change of the mesh.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdft_jax.errors import reason
from sdft_jax.files import open_replacement, parse_sealed, sealed
from sdft_jax.files.hashing import short_digest
from sdft_jax.files.writing import TEMPORARY
from sdft_jax.sharding.routes import assemble, devices_of, positions, route, send, stacked
from sdft_jax.training.checkpoint import ARRAYS, DATA, Restored, complete_meta
from sdft_jax.training.digests import difference
from sdft_jax.training.processes import gathered
from sdft_jax.types import TrainState

OWN, COPY = "own", "copy"
"""The kinds of a file: a process's own shards, and a copy of the previous process's."""
_LAYOUT = "layout"
"""Key of a record: the digest of `_layout`."""
_LONGEST = 1 << 26
"""Maximum length of a record, in bytes."""
KEEP = 2
"""Number of checkpoints in a directory; the newest may be incomplete on another host."""
Print = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class LocalTier:
    """The local checkpoints of a run on this host."""

    directory: Path
    """The directory of the run; each process of this host has one below it."""
    every: int
    """Number of steps between two checkpoints."""
    show: Print
    writer: concurrent.futures.ThreadPoolExecutor
    writes: list[concurrent.futures.Future[None]]
    """The write that is under way, if any."""


@contextlib.contextmanager
def open_local_tier(
    directory: str | None, every: int, run: str, resumed: bool, show: Print
) -> Iterator[LocalTier | None]:
    """Yield the local checkpoints of a run, or None without a directory; leaving waits for the last write.

    Args:
        directory: the setting `checkpoint.local`.
        every: number of steps between two checkpoints.
        run: a text that identifies the run and its output.
        resumed: False to delete what an earlier run left.
        show: prints a message.
    """
    if directory is None:
        yield None
        return
    below = Path(directory) / short_digest(run)
    if not resumed:
        shutil.rmtree(below, ignore_errors=True)
    for interrupted in below.glob(f"*/.*{TEMPORARY}"):  # by a kill; no process of this run writes yet
        with contextlib.suppress(OSError):
            interrupted.unlink()
    with concurrent.futures.ThreadPoolExecutor(1) as writer:
        yield LocalTier(below, every, show, writer, [])


def delete(tier: LocalTier | None) -> None:
    """Delete the checkpoints of a finished run; every process calls it."""
    if tier is not None:
        _finish_writing(tier)
        gathered(None)  # the other processes of this host have finished writing too
        shutil.rmtree(tier.directory, ignore_errors=True)


def save(tier: LocalTier, step: int, state: TrainState, iterator: Any, meta: Mapping[str, Any]) -> None:
    """Copy the shards to the host, and write them in the background; every process calls it.

    A write that fails is reported, and does not end the run.
    """
    leaves = jax.tree.leaves(state)
    process, processes = jax.process_index(), jax.process_count()
    record = complete_meta(state, iterator, meta) | {_LAYOUT: _layout(leaves)}
    files = {_name(step, process, OWN): [_distinct(x, x, process) for x in leaves]}
    if processes > 1:
        previous = (process - 1) % processes
        next_ones = {sender: (sender + 1) % processes for sender in range(processes)}
        files[_name(step, previous, COPY)] = [
            # one array at a time: a copy of the whole state need not fit the devices
            _distinct(send(x, x.sharding, route(x.sharding, next_ones)), x, previous)
            for x in leaves
        ]
    _finish_writing(tier)
    tier.writes.append(tier.writer.submit(_write, tier.directory / str(process), record, files))


def restore(tier: LocalTier, abstract_state: TrainState, iterator: Any, after: int) -> Restored | None:
    """Restore the newest checkpoint after step `after` of which every shard is on some host, or return None.

    Every process calls it.
    """
    files = gathered([key for key in _held(tier.directory) if key[0] > after])
    held = [[(int(step), int(owner), str(kind)) for step, owner, kind in keys] for keys in files]
    while (found := choose(held)) is not None:
        if restored := _restore_step(tier, abstract_state, iterator, *found):
            return restored
        held = [[key for key in keys if key[0] < found[0]] for keys in held]
    return None


def _restore_step(
    tier: LocalTier, abstract_state: TrainState, iterator: Any, step: int, sources: Sources
) -> Restored | None:
    """Return the checkpoint of a step that all processes can read, or report the problem and return None."""
    leaves, treedef = jax.tree.flatten(abstract_state)
    record, contents, problem = _open(tier.directory, step, sources, leaves)
    records = [record for record in gathered(record) if record]
    if any(gathered(problem)):
        problem = problem or "see the other processes"
    else:
        state = jax.tree.unflatten(treedef, _assembled(contents, sources, leaves))
        changed = difference(state, records[0][ARRAYS])
        if changed is None:
            iterator.set_state(records[0][DATA])
            return Restored(state, records[0], step, ())
        problem = f"{changed} is not what was saved"
    _report(tier, f"the local checkpoint of step {step} in {tier.directory} is not used: {problem}")
    return None


Held = tuple[int, int, str]
"""Step, owner of the shards, and kind of a file."""
Sources = Mapping[str, Mapping[int, int]]
"""Kind -> process that reads a file -> owner of the shards in it."""


def choose(held: Sequence[Sequence[Held]]) -> tuple[int, Sources] | None:
    """Return the newest step of which all shards are held, and who reads which file; None if there is none.

    Each process reads one file of a kind at most.

    Args:
        held: the files of each process.

    Example: process 1 of three has lost its disk; process 2 reads its copy of process 1's shards.

    >>> choose([[(4, 0, "own"), (4, 2, "copy")], [], [(4, 2, "own"), (4, 1, "copy")]])
    (4, {'own': {0: 0, 2: 2}, 'copy': {2: 1}})
    """
    for step in sorted({key[0] for files in held for key in files}, reverse=True):
        sources: dict[str, dict[int, int]] = {OWN: {}, COPY: {}}
        for owner in range(len(held)):
            # on a shared disk, several processes hold the same file
            readers = [owner, *(reader for reader in range(len(held)) if reader != owner)]
            for kind, reader in itertools.product((OWN, COPY), readers):
                if (step, owner, kind) in held[reader] and reader not in sources[kind]:
                    sources[kind][reader] = owner
                    break
            else:
                break
        else:
            return step, sources
    return None


def _held(directory: Path) -> dict[Held, Path]:
    """Return the files that this host has, of all its processes; the newest one of each key."""
    files = sorted(_files(directory), key=lambda file: file.stat().st_mtime)
    found: dict[Held, Path] = {}
    for file in files:
        step, owner, kind = file.name.split(".")
        found[int(step), int(owner), kind] = file
    return found


def _files(directory: Path) -> Iterator[Path]:
    return directory.glob("*/[0-9]*.*.*")  # no hidden file, which a kill may have left


def _name(step: int, owner: int, kind: str) -> str:
    return f"{step}.{owner}.{kind}"


def _layout(leaves: Sequence[Any]) -> str:
    """Return a digest of the shape and placement of all arrays; shards fit only the same one."""
    parts = [
        (str(x.dtype), x.shape, str(x.sharding.spec), dict(x.sharding.mesh.shape), positions(x.sharding))
        for x in leaves
    ]
    return short_digest(repr(parts))


def _distinct(shards: jax.Array, x: Any, owner: int) -> list[np.ndarray]:
    """Return this process's different shards as host arrays.

    Args:
        shards: `x`, or the stack of received shards of it.
        x: an array, or its shape, dtype and sharding.
        owner: the process whose devices have, or had, these shards.
    """
    data = {shard.device: shard.data for shard in shards.addressable_shards}
    local = [data[device] for device in devices_of(x.sharding, jax.process_index())]
    slots = _slots(x, owner)
    shape = x.sharding.shard_shape(x.shape)
    return [np.asarray(local[slots.index(slot)]).reshape(shape) for slot in range(max(slots) + 1)]


def _slots(x: Any, owner: int) -> list[int]:
    """Return for each device of a process, in order, the number of its shard among the different ones.

    Example: of an array that is split in two on four devices, [0, 0, 1, 1].
    """
    indices = x.sharding.devices_indices_map(x.shape)
    mine = [str(indices[device]) for device in devices_of(x.sharding, owner)]
    different = list(dict.fromkeys(mine))
    return [different.index(index) for index in mine]


def _write(
    directory: Path, record: Mapping[str, Any], files: Mapping[str, Sequence[Sequence[np.ndarray]]]
) -> None:
    """Write files of a sealed record in one line and the bytes of all shards; delete those of other steps.

    Files of later steps are those of an attempt that could not be resumed. A process that had another number
    before has left files in another directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, leaves in files.items():
        with open_replacement(directory / name, "wb") as file:
            file.write(json.dumps(sealed(record)).encode() + b"\n")
            for shard in itertools.chain.from_iterable(leaves):
                file.write(np.ascontiguousarray(shard).view(np.uint8).data)
        file.close()
    now = record["step"]
    steps = {path: int(path.name.partition(".")[0]) for path in _files(directory.parent)}
    own = {step for path, step in steps.items() if path.parent == directory and step <= now}
    oldest = sorted(own)[-KEEP:][0]
    for path, step in steps.items():
        # another process of this host may be ahead
        if step < oldest or (step > now and path.parent == directory):
            path.unlink(missing_ok=True)


def _finish_writing(tier: LocalTier) -> None:
    """Wait for the write under way, and report its failure."""
    while tier.writes:
        error = tier.writes.pop().exception()
        if isinstance(error, OSError):
            _report(
                tier,
                f"the local checkpoint in {tier.directory} cannot be written ({error.strerror or error}): "
                "the run continues with the checkpoints in its output",
            )
        elif error is not None:
            raise error


def _report(tier: LocalTier, message: str) -> None:
    """Show a message, on the other hosts too: it may be the disk of one of them that is full."""
    if jax.process_index() == 0:
        tier.show(message)
    else:
        print(f"sdft: {message}.", file=sys.stderr, flush=True)


Contents = Mapping[str, np.ndarray]
"""Kind -> the bytes of the shards in the file that this process reads."""


def _open(
    directory: Path, step: int, sources: Sources, leaves: Sequence[Any]
) -> tuple[dict[str, Any] | None, Contents, str]:
    """Return (record, contents, problem) of the files that this process reads; the problem is "" if none."""
    held, process, layout = _held(directory), jax.process_index(), _layout(leaves)
    record: dict[str, Any] | None = None
    contents: dict[str, np.ndarray] = {}
    for kind, owners in sources.items():
        if process not in owners:
            continue
        owner = owners[process]
        path = held[step, owner, kind]
        try:
            with path.open("rb") as file:
                record = parse_sealed(file.readline(_LONGEST))
                start = file.tell()
            contents[kind] = np.memmap(path, np.uint8, "r", start)
        except (OSError, ValueError) as error:
            return None, {}, f"{path} cannot be read ({reason(error)})"
        if record.get(_LAYOUT) != layout:
            return None, {}, "the mesh or the number of processes has changed, or its record is damaged"
        expected = sum(_stored_bytes(x, owner) for x in leaves)
        if contents[kind].size != expected:
            return None, {}, f"{path} has {contents[kind].size} bytes of shards instead of {expected}"
    return record, contents, ""


def _shard_bytes(x: Any) -> int:
    return int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * np.dtype(x.dtype).itemsize


def _stored_bytes(x: Any, owner: int) -> int:
    """Return the number of bytes of a process's different shards."""
    return (max(_slots(x, owner)) + 1) * _shard_bytes(x)


def _assembled(contents: Contents, sources: Sources, leaves: Sequence[Any]) -> Iterator[jax.Array]:
    """Yield the arrays, one at a time, of the shards that all processes have read."""
    process, offsets = jax.process_index(), {OWN: 0, COPY: 0}
    for x in leaves:
        stacks = {}
        for kind in (OWN, COPY):
            owner = sources[kind].get(process)
            stacks[kind] = _stack(x, contents.get(kind), offsets[kind], owner)
            if owner is not None:
                offsets[kind] += _stored_bytes(x, owner)
        along = (route(x.sharding, sources[kind]) for kind in (OWN, COPY))
        yield jax.block_until_ready(assemble(stacks[OWN], stacks[COPY], x.sharding, *along))


def _stack(x: Any, content: np.ndarray | None, offset: int, owner: int | None) -> jax.Array:
    """Return the stack of shards with this process's rows from a file, or zeros without one."""
    shape, size = x.sharding.shard_shape(x.shape), _shard_bytes(x)
    mine = devices_of(x.sharding, jax.process_index())
    if content is None or owner is None:
        rows = [np.zeros((1, *shape), x.dtype)] * len(mine)
    else:
        starts = [offset + slot * size for slot in _slots(x, owner)]
        rows = [content[start : start + size].view(x.dtype).reshape(1, *shape) for start in starts]
    return jax.make_array_from_single_device_arrays(
        (x.sharding.mesh.size, *shape),
        stacked(x.sharding),
        [jax.device_put(row, device) for row, device in zip(rows, mine, strict=True)],
    )
