"""Checkpoints of a run: saved in the background, restored on any mesh, verified by a restore.

Orbax writes and commits them. Their meta contains a digest of every array (`digests.py`), so that a commit
waits for no process that reads files back, and a restore reads each file once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import parse_sealed, read_bytes, sealed, write_text
from sdft_jax.training.digests import describe, difference, specs
from sdft_jax.training.processes import agreed, gathered, together
from sdft_jax.types import TrainState

_TEMPORARY = "*.orbax-checkpoint-tmp*"
ARRAYS, DATA = "arrays", "data"
"""Keys of the meta: the description of each array, and the position in the data."""
_EVALUATION = "evaluation.json"
"""The file with the evaluation of a checkpoint, which is made after the state is safe."""
_READ_REMEDY = "fix this and run the same command again, or move the checkpoint away"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory."""

    state: Any
    """The TrainState, or the requested fields of it."""
    meta: dict[str, Any]
    step: int
    skipped: tuple[str, ...]
    """A message for each newer or better checkpoint that is damaged."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its query for preemption, whose number JAX would take for one of the loop's."""

    def reached_preemption(self, step: int) -> bool:
        """Return False: the loop ends the run."""
        return False


@contextlib.contextmanager
def open_manager(
    directory: epath.Path, keep_last: int = 2, keep_best: int = 1
) -> Iterator[ocp.CheckpointManager]:
    """Yield the manager of a directory of checkpoints; leaving the context waits for the last save.

    It keeps the `keep_last` newest checkpoints and the `keep_best` ones with the best score.

    Raises:
        SdftError: the last save failed for lack of space or permission.
    """
    policy = _KeepLastAndBest(directory, keep_last, keep_best)
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    with _storage_errors(directory):
        manager = _Manager(directory, options=options)
    try:
        yield manager
        wait(manager)
        _delete_surplus(manager, policy)
    finally:
        with _storage_errors(directory):
            manager.close()


def save(
    manager: ocp.CheckpointManager, step: int, state: TrainState, iterator: Any, meta: Mapping[str, Any]
) -> bool:
    """Start saving, and return when the arrays may be donated; return False if `step` is already saved.

    The remains of a save that failed or that a kill interrupted are deleted first. `meta` is JSON.
    The score from `record_evaluation` decides which checkpoint is the best.

    Raises:
        SdftError: this save or the previous one failed for lack of space or permission; older checkpoints are
            intact.
    """
    record = sealed(complete_meta(state, iterator, meta))
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record))
    with _storage_errors(manager.directory):
        manager.wait_until_finished()
        _delete_partial(manager.directory)
        return manager.save(step, args=items)


def complete_meta(state: TrainState, iterator: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meta with the description of each array, and with the position in the data.

    The position is that in the global data, the same on all hosts. Every process calls it.
    """
    return dict(meta) | {ARRAYS: describe(state), DATA: iterator.get_state()}


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait until the last save is committed. Raises SdftError like `save`."""
    with _storage_errors(manager.directory):
        manager.wait_until_finished()


def record_evaluation(manager: ocp.CheckpointManager, step: int, evaluation: Mapping[str, Any]) -> None:
    """Write the evaluation of a saved step; `restore_latest` merges it into the step's meta.

    Its `metrics["score"]`, if present, decides which checkpoint is the best. Every process calls it; process
    0 writes.

    Raises:
        SdftError: the save of this step failed, or the file cannot be written, for lack of space or
            permission.
    """
    wait(manager)
    if jax.process_index() == 0:
        with _storage_errors(manager.directory):
            file = manager.directory / str(step) / _EVALUATION
            write_text(file, json.dumps(sealed(evaluation)))


def _delete_surplus(manager: ocp.CheckpointManager, policy: _KeepLastAndBest) -> None:
    """Delete the checkpoints that a score recorded since the last save makes surplus."""
    steps = sorted(manager.all_steps())
    surplus = [step for step, keep in zip(steps, policy.preserved(steps), strict=True) if not keep]
    for step in agreed(surplus):
        manager.delete(step)


def steps(manager: ocp.CheckpointManager) -> list[int]:
    """Return the steps of the committed checkpoints, in order; the same on every process."""
    return agreed(_steps(manager.directory))


def restore_latest(
    manager: ocp.CheckpointManager, abstract_state: TrainState, iterator: Any, run: str | None = None
) -> Restored | None:
    """Restore the newest intact checkpoint and the position of `iterator`; return None if there is none.

    Newer damaged checkpoints, and those of another step or run, are renamed to `damaged-STEP`, so that the
    run can save those steps again. Every process calls it.

    Args:
        manager: from `open_manager`.
        abstract_state: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) of the state, on any mesh and
            with any number of processes.
        iterator: a grain iterator over the same data.
        run: `meta["run"]` of this run's checkpoints; None to accept those of any run.

    Raises:
        SdftError: every checkpoint is damaged, the newest intact one has another structure than the state, or
            the storage cannot be read.
    """
    directory = manager.directory
    restored, skipped = _first_intact(directory, steps(manager)[::-1], abstract_state, run)
    if restored is None:
        if skipped:
            raise _all_damaged(directory, skipped)
        return None
    try:
        iterator.set_state(restored.meta[DATA])
    except (ValueError, KeyError, TypeError) as error:
        raise _unfit(directory / str(restored.step), reason(error)) from error
    _set_aside(manager, list(skipped))
    return restored


def load(
    directory: epath.Path, abstract: Mapping[str, Any], run: str | None = None, best: bool = False
) -> Restored:
    """Read some fields of the newest intact checkpoint, or of the intact one with the best score.

    Args:
        directory: the directory of the checkpoints.
        abstract: fields of TrainState, such as `{"params": ..., "frozen": ...}`, as shapes, dtypes and
            shardings.
        run: `meta["run"]` of this run's checkpoints; None to accept those of any run.
        best: the checkpoint with the best score, the newest of equal ones.

    Raises:
        SdftError: there is no intact checkpoint (with a score, for `best`), it has another structure, or the
            storage cannot be read.
    """
    candidates = agreed(_steps(directory))
    if best:
        scores = together(lambda: {step: _score(directory / str(step)) for step in candidates})
        candidates = agreed([step for x, step in sorted((x, s) for s, x in scores.items() if x is not None)])
    restored, skipped = _first_intact(directory, candidates[::-1], abstract, run)
    if restored is not None:
        return restored
    if skipped and not best:
        raise _all_damaged(directory, skipped)
    if best:
        raise SdftError(
            f"{directory.parent} has no intact checkpoint with a score: set train.eval_every in the run, or "
            "use the newest checkpoint."
        )
    raise SdftError(
        f"{directory.parent} has no checkpoint: give the output directory of a run that saved one."
    )


@dataclasses.dataclass(frozen=True)
class _KeepLastAndBest:
    """An Orbax preservation policy. Orbax's BestN fails if the metrics file of a checkpoint is damaged."""

    directory: epath.Path
    last: int
    best: int

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return self.preserved([info.step for info in checkpoints])

    def preserved(self, steps: Sequence[int]) -> list[bool]:
        """Return for each step, in ascending order, whether its checkpoint is one of the newest or best."""
        scores = {step: _score(self.directory / str(step)) for step in steps}
        ranked = sorted((score, step) for step, score in scores.items() if score is not None)
        preserved = {
            *steps[-self.last :],
            *(step for _, step in ranked[len(ranked) - min(self.best, len(ranked)) :]),
        }
        return [step in preserved for step in steps]


def _steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


class _Damaged(Exception):
    """A checkpoint is damaged, or it is that of another step or run; the message is the problem."""


def _first_intact(
    directory: epath.Path, steps: Sequence[int], abstract: Any, run: str | None
) -> tuple[Restored | None, dict[int, str]]:
    """Return the first intact one of these steps, and a message for each damaged step before it."""
    skipped: dict[int, str] = {}
    for step in steps:
        checkpoint = directory / str(step)
        try:
            tree, meta = _read(checkpoint, abstract, run)
        except _Damaged as problem:
            skipped[step] = f"checkpoint {checkpoint} is damaged and was skipped: {problem}."
        else:
            return Restored(tree, meta, step, tuple(skipped.values())), skipped
    return None, skipped


def _read(checkpoint: epath.Path, abstract: Any, run: str | None) -> tuple[Any, dict[str, Any]]:
    """Return (arrays, meta) of a checkpoint. Raises _Damaged, or SdftError if it has another structure."""
    # all processes decide by what process 0 has read
    meta = agreed(together(lambda: read_meta(checkpoint)))
    if ARRAYS not in meta:
        raise _Damaged("its meta is damaged, or of an older version of sdft_jax")
    if meta.get("step", int(checkpoint.name)) != int(checkpoint.name):
        raise _Damaged(f"it holds step {meta['step']}")
    if run is not None and meta.get("run", run) != run:
        raise _Damaged("it belongs to another run")
    saved = meta[ARRAYS]
    wanted = specs(abstract)
    if isinstance(abstract, TrainState):  # all of it: nothing may be left over
        wanted |= {name: "nothing" for name in saved if name not in wanted}
    for name, spec in wanted.items():
        if (held := saved.get(name, ["nothing"])[0]) != spec:
            raise _unfit(checkpoint, f"its {name} is {held}, and this run's is {spec}")
    tree = _read_arrays(checkpoint, abstract)
    if changed := difference(tree, saved):
        raise _Damaged(f"{changed} is not what was saved")
    return tree, meta


def _read_arrays(checkpoint: epath.Path, abstract: Any) -> Any:
    """Return the arrays of a checkpoint; each process reads its shards.

    Raises:
        _Damaged: on every process, if one cannot read a file.
        SdftError: on every process, if the storage of one fails.
    """
    tree, problem, failure = None, "", None
    try:
        tree = ocp.PyTreeCheckpointHandler().restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            ),
        )
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # TensorStore and Orbax raise many types for a damaged file
        # TensorStore's messages have its whole specification of an array
        problem, failure = textwrap.shorten(reason(error), 160, placeholder=" ..."), storage_reason(error)
    worst = max(gathered(2 if failure else 1 if problem else 0))
    if worst == 2:
        raise SdftError(
            f"checkpoint {checkpoint} cannot be read ({failure or 'see the other processes'}): "
            f"{_READ_REMEDY}."
        )
    if worst:
        raise _Damaged(problem or "another process cannot read it")
    return tree


def _unfit(checkpoint: epath.Path, problem: str) -> SdftError:
    return SdftError(
        f"checkpoint {checkpoint} does not fit this run ({problem}): its model, optimizer or teacher is "
        "another one; give another output=, or move the checkpoint away."
    )


def _all_damaged(directory: epath.Path, skipped: Mapping[int, str]) -> SdftError:
    return SdftError(
        f"every checkpoint in {directory} is damaged ({' '.join(skipped.values())}): restore one from a "
        f"backup, or delete {directory.parent} to start from scratch."
    )


def _set_aside(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
    """Rename damaged checkpoints to `damaged-STEP`."""
    if not steps:
        return
    if jax.process_index() == 0:
        for step in steps:
            target = manager.directory / f"damaged-{step}"
            if target.exists():
                target.rmtree()
            (manager.directory / str(step)).rename(target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sdft_jax.training.checkpoint.set_aside")
    manager.reload()


def newest_meta(directory: epath.Path) -> dict[str, Any]:
    """Return the meta of the newest checkpoint whose meta is intact; {} if there is none."""
    metas = (read_meta(directory / str(step)) for step in reversed(_steps(directory)))
    return next((meta for meta in metas if ARRAYS in meta), {})


def read_meta(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the meta of a checkpoint, with its evaluation if that has been recorded; {} if it is damaged.

    Raises:
        SdftError: the storage cannot be read.
    """
    return _read_record(checkpoint / "meta" / "metadata") | _read_record(checkpoint / _EVALUATION)


def _read_record(file: epath.Path) -> dict[str, Any]:
    try:
        return parse_sealed(read_bytes(file, _READ_REMEDY))
    except SdftError as error:
        if storage_reason(error):
            raise
        return {}  # it is missing, or something else has its name


def _score(checkpoint: epath.Path) -> float | None:
    """Return the score of a checkpoint; None if there is none or it is damaged."""
    metrics = read_meta(checkpoint).get("metrics")
    score = metrics.get("score") if isinstance(metrics, dict) else None
    return score if isinstance(score, int | float) else None


@contextlib.contextmanager
def _storage_errors(directory: epath.Path) -> Iterator[None]:
    """Raise SdftError for a full or read-only disk, and delete the remains of the failed save."""
    try:
        yield
    except Exception as error:
        reason = storage_reason(error)
        if reason is None:
            raise
        _delete_partial(directory)
        raise SdftError(
            f"checkpoints in {directory} cannot be written ({reason}): fix this and run the same command "
            "again; it resumes from the last intact checkpoint."
        ) from error


def _delete_partial(directory: epath.Path) -> None:
    """Delete what an unfinished save left. Writes that it started may still end afterwards and leave more."""
    if jax.process_index() == 0:
        for partial in directory.glob(_TEMPORARY):
            with contextlib.suppress(OSError):
                partial.rmtree()


_STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ETIMEDOUT),  # of network file systems
    *(errno.EMFILE, errno.ENFILE),
)
"""The error codes of storage."""
_BUCKET = re.compile(r"\b(UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED)\b")
"""The codes by which TensorStore reports that a bucket does not answer, or refuses."""


def storage_reason(error: BaseException | None) -> str | None:
    """Return the operating system's message for a storage error, which TensorStore puts into a ValueError, or
    the code of a bucket.
    """
    while error is not None:
        # JAX's own errors have such codes too
        if not isinstance(error, jax.errors.JaxRuntimeError) and (bucket := _BUCKET.search(str(error))):
            return bucket[0]
        for code in _STORAGE:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
