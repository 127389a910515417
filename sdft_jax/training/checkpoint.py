"""Checkpoints of a run: saved in the background, verified before a restore, restored on any mesh.

Orbax writes and commits them; `checksums.py` detects damaged ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import read_record, write_text
from sdft_jax.training.checksums import damage, seal
from sdft_jax.training.processes import broadcast
from sdft_jax.types import TrainState

_TEMPORARY = "*.orbax-checkpoint-tmp*"
_EVALUATION = "evaluation.json"
"""The file with the evaluation of a checkpoint, which is made after the state is safe."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """The checkpoint that a run resumes from."""

    state: TrainState
    meta: dict[str, Any]
    step: int
    skipped: tuple[str, ...]
    """A message for each newer checkpoint that is damaged and was renamed."""


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
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        async_options=ocp.AsyncOptions(post_finalization_callback=functools.partial(seal, directory)),
    )
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
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        # the position in the global data, the same on all hosts
        data=ocp.args.JsonSave(iterator.get_state()),
        meta=ocp.args.JsonSave(dict(meta)),
    )
    with _storage_errors(manager.directory):
        manager.wait_until_finished()
        _delete_partial(manager.directory)
        return manager.save(step, args=items)


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
        text = json.dumps(evaluation)
        with _storage_errors(manager.directory):
            file = manager.directory / str(step) / _EVALUATION
            write_text(file, json.dumps({"crc32": zlib.crc32(text.encode()), "evaluation": text}))


def _delete_surplus(manager: ocp.CheckpointManager, policy: _KeepLastAndBest) -> None:
    """Delete the checkpoints that a score recorded since the last save makes surplus."""
    steps = sorted(manager.all_steps())
    preserved = np.array(policy.preserved(steps))
    if jax.process_count() > 1:
        preserved = multihost_utils.broadcast_one_to_all(preserved)
    for step, keep in zip(steps, preserved, strict=True):
        if not keep:
            manager.delete(step)


def restore_latest(
    manager: ocp.CheckpointManager, abstract_state: TrainState, iterator: Any, run: str | None = None
) -> Restored | None:
    """Restore the newest intact checkpoint and the position of `iterator`; return None if there is none.

    Newer damaged checkpoints, and those of another step or run, are renamed to `damaged-STEP`, so that the
    run can save those steps again.

    Args:
        manager: from `open_manager`.
        abstract_state: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) of the state, on any mesh and
            with any number of processes.
        iterator: a grain iterator over the same data.
        run: `meta["run"]` of this run's checkpoints; None to accept those of any run.

    Raises:
        SdftError: every checkpoint is damaged, or the newest intact one has another structure than the state.
    """
    step, skipped = _newest_intact(manager.directory, manager.all_steps(), run)
    if step is None:
        return None
    checkpoint = manager.directory / str(step)
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state),
                data=ocp.args.JsonRestore(),
            ),
        )
        iterator.set_state(restored.data)
    except (ValueError, KeyError, TypeError) as error:
        raise SdftError(
            f"checkpoint {checkpoint} does not fit this run ({reason(error)}): its model, optimizer or "
            "teacher is another one; give another output=, or move the checkpoint away."
        ) from error
    _set_aside(manager, list(skipped))
    meta = read_meta(checkpoint)
    if jax.process_count() > 1:  # all processes decide by what process 0 has read
        meta = json.loads(broadcast(json.dumps(meta)))
    return Restored(restored.state, meta, step, tuple(skipped.values()))


def newest(directory: epath.Path, run: str | None = None) -> epath.Path:
    """Return the newest intact checkpoint (of `run`), for `load`. Raises SdftError if there is none."""
    step, _ = _newest_intact(directory, _steps(directory), run)
    if step is None:
        raise SdftError(
            f"{directory.parent} has no checkpoint: give the output directory of a run that saved one."
        )
    return directory / str(step)


def best(directory: epath.Path, run: str | None = None) -> epath.Path:
    """Return the intact checkpoint (of `run`) with the best score, the newest of equal ones, for `load`.

    Raises:
        SdftError: no intact checkpoint has a score.
    """
    scores = {step: _score(directory / str(step)) for step in _steps(directory)}
    ranked = sorted((score, step) for step, score in scores.items() if score is not None)
    for _, step in reversed(ranked):
        if _fault(directory / str(step), run) is None:
            return directory / str(step)
    raise SdftError(
        f"{directory.parent} has no intact checkpoint with a score: set train.eval_every in the run, or use "
        "the newest checkpoint."
    )


def load(checkpoint: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Read only some fields of the saved TrainState, such as `{"params": ..., "frozen": ...}`."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                item=dict(abstract),
                restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract)),
                partial_restore=True,
            ),
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


def _newest_intact(
    directory: epath.Path, steps: Sequence[int], run: str | None
) -> tuple[int | None, dict[int, str]]:
    """Return the newest intact step, and a message for each newer damaged one; process 0 decides for all.

    Raises:
        SdftError: there are checkpoints, and all are damaged.
    """
    skipped: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        problem = _fault(directory / str(step), run) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            is_damaged = bool(multihost_utils.broadcast_one_to_all(problem is not None))
            problem = (problem or "see the message of process 0") if is_damaged else None
        if problem is None:
            return step, skipped
        skipped[step] = f"checkpoint {directory / str(step)} is damaged and was skipped: {problem}."
    if skipped:
        raise SdftError(
            f"every checkpoint in {directory} is damaged ({' '.join(skipped.values())}): restore one from a "
            f"backup, or delete {directory.parent} to start from scratch."
        )
    return None, {}


def _fault(checkpoint: epath.Path, run: str | None) -> str | None:
    """Return the first problem with a checkpoint: damaged files, or those of another step or run; or None."""
    if problem := damage(checkpoint):
        return problem
    meta = read_meta(checkpoint)
    if meta.get("step", int(checkpoint.name)) != int(checkpoint.name):
        return f"it holds step {meta['step']}"
    if run is not None and meta.get("run", run) != run:
        return "it belongs to another run"
    return None


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


def read_meta(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the meta of a checkpoint, with its evaluation if that has been recorded; {} if it is damaged."""
    meta = read_record(checkpoint / "meta" / "metadata")
    record = read_record(checkpoint / _EVALUATION)
    text = record.get("evaluation")
    if isinstance(text, str) and zlib.crc32(text.encode()) == record.get("crc32"):
        meta |= json.loads(text)
    return meta


def _score(checkpoint: epath.Path) -> float | None:
    """Return the score of a checkpoint; None if there is none or it cannot be read."""
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
    *(errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN),  # of network file systems
    *(errno.EMFILE, errno.ENFILE),
)
"""The error codes of storage."""


def storage_reason(error: BaseException | None) -> str | None:
    """Return the operating system's message for a storage error, which TensorStore puts into a ValueError."""
    while error is not None:
        for code in _STORAGE:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
