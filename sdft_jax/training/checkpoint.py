"""Checkpoints of a run: saved while training goes on, verified before they are trusted, on any mesh.

Orbax writes and commits them; `manifest.py` tells an intact one from a damaged one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
import yaml
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from sdft_jax.config.overrides import flatten
from sdft_jax.errors import SdftError
from sdft_jax.training.bucket import CHECKPOINTS, is_remote
from sdft_jax.training.checksums import damage, seal
from sdft_jax.types import TrainState

Path = str | os.PathLike[str]

RESUMABLE = (
    # Where and how it runs: rounding may differ, the algorithm does not.
    "output",
    "preset",
    "mesh",
    "sharding",
    "model.remat",
    "train.micro_batch",
    "train.completion_buckets",
    "divergence.chunk",
    # What is written about it, and how often.
    "report",
    "profile",
    "debug",
    "checkpoint",
    "eval.batch_size",
    "eval.overlap",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.rollouts_every",
    "train.rollouts_rows",
    "train.phases_every",
    # When to stop, and what else runs beside it. Not train.steps: the learning rate decays over them.
    "train.stop_at",
    "train.patience",
    "train.max_kl",
    "train.choose",
    "baseline",
    "baseline_learning_rate",
)
"""Keys (with all below them) in which a run and its resumption may differ."""

_CONFIG = "config.yaml"
_TEMPORARY = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run resumes from."""

    state: TrainState
    meta: dict[str, Any]
    step: int
    skipped: tuple[str, ...]
    """One sentence for each newer checkpoint that was damaged and set aside."""


def claim(output: Path, config: Mapping[str, Any], resumable_differences: Sequence[str] = RESUMABLE) -> bool:
    """Make `output` the directory of this run, with its config.yaml; True if it already was: resume.

    Every process calls it; process 0 looks and writes.

    Raises:
        SdftError: the directory holds another run (the first key that differs is named) or files that
            are not a run, or cannot be written.
    """
    refusal, resumed = "", False
    if jax.process_index() == 0:
        try:
            resumed = _claim(epath.Path(output), config, resumable_differences)
        except SdftError as error:
            refusal = str(error)
    if jax.process_count() > 1:
        bad, resumed = multihost_utils.broadcast_one_to_all((bool(refusal), resumed))
        refusal = refusal or ("process 0 could not claim the run directory; see its message." if bad else "")
    if refusal:
        raise SdftError(refusal)
    return bool(resumed)


@contextlib.contextmanager
def open_manager(output: Path, keep_last: int = 2, keep_best: int = 1) -> Iterator[ocp.CheckpointManager]:
    """Manager of `output`/checkpoints; leaving the context waits for the last save.

    It keeps the `keep_last` newest checkpoints and, besides, the `keep_best` of best score. What a
    killed process left half-written is removed meanwhile, at the latest before the next save.

    Raises:
        SdftError: the last save failed for want of space or permission.
    """
    directory = _directory(output)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_KeepLastAndBest(directory, keep_last, keep_best),
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=functools.partial(seal, directory)),
    )
    with _storage_errors(directory):
        manager = ocp.CheckpointManager(directory, options=options)
    try:
        yield manager
    finally:
        with _storage_errors(directory):
            manager.close()


def save(
    manager: ocp.CheckpointManager, step: int, state: TrainState, iterator: Any, meta: Mapping[str, Any]
) -> bool:
    """Start saving; returns once the arrays may be donated. False if `step` is already saved.

    `meta` is JSON; its `meta["metrics"]["score"]`, where there is one, decides what is kept as best.

    Raises:
        SdftError: this save or the one before met a full disk or missing permission. Older checkpoints
            are untouched.
    """
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=ocp.args.JsonSave(iterator.get_state()),  # a position in the global data, the same on all hosts
        meta=ocp.args.JsonSave(dict(meta)),
    )
    with _storage_errors(manager.directory):
        return manager.save(step, args=items, metrics=meta.get("metrics") or None)


def wait(manager: ocp.CheckpointManager) -> None:
    """Block until the last save is committed; raises as `save` does."""
    with _storage_errors(manager.directory):
        manager.wait_until_finished()


def restore_latest(
    manager: ocp.CheckpointManager, abstract_state: TrainState, iterator: Any
) -> Restored | None:
    """Newest intact checkpoint, or None where there is none yet; moves `iterator` to its position.

    Damaged ones newer than it are renamed to `damaged-STEP`, so that the run can write those steps again.

    Args:
        manager: from `open_manager`.
        abstract_state: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) of the state wanted; any mesh,
            any number of processes.
        iterator: grain iterator over the same data.

    Raises:
        SdftError: every checkpoint is damaged.
    """
    step, skipped = _newest_intact(manager.directory, manager.all_steps())
    if step is None:
        return None
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            data=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        ),
    )
    iterator.set_state(restored.data)
    _set_aside(manager, list(skipped))
    return Restored(restored.state, restored.meta, step, tuple(skipped.values()))


def newest(output: Path) -> epath.Path:
    """Newest intact checkpoint of a run, for `load`. Raises SdftError when there is none."""
    directory = _directory(output)
    step, _ = _newest_intact(directory, _steps(directory))
    if step is None:
        raise SdftError(f"{output} has no checkpoint: give the output directory of a run that saved one.")
    return directory / str(step)


def best(output: Path) -> epath.Path:
    """Intact checkpoint of best score (the newest of equals), for `load`.

    Raises:
        SdftError: there is none with a score.
    """
    directory = _directory(output)
    scores = {step: _score(directory / str(step)) for step in _steps(directory)}
    ranked = sorted((score, step) for step, score in scores.items() if score is not None)
    for _, step in reversed(ranked):
        if damage(directory / str(step)) is None:
            return directory / str(step)
    raise SdftError(
        f"{output} has no intact checkpoint with a score: set train.eval_every in the run, or use the newest."
    )


def load(checkpoint: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of the saved TrainState, such as `{"params": ..., "frozen": ...}`, and no others."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                item=dict(abstract),
                restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract)),
                partial_restore=True,
            ),
        )


def _directory(output: Path) -> epath.Path:
    """Of a run's checkpoints; epath takes gs:// for a relative path when it is asked for the absolute one."""
    path = epath.Path(output)
    return (path if path.is_absolute() else path.absolute()) / CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class _KeepLastAndBest:
    """Orbax preservation policy. Orbax's BestN needs a metrics file whose damage stops the manager."""

    directory: epath.Path
    last: int
    best: int

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        scores = {info.step: self._score(info) for info in checkpoints}
        ranked = sorted((score, step) for step, score in scores.items() if score is not None)
        kept = {
            *steps[-self.last :],
            *(step for _, step in ranked[len(ranked) - min(self.best, len(ranked)) :]),
        }
        return [step in kept for step in steps]

    def _score(self, info: PolicyCheckpointInfo) -> float | None:
        if info.metrics is None:
            return _score(self.directory / str(info.step))
        return info.metrics.get("score")


def _claim(output: epath.Path, config: Mapping[str, Any], resumable: Sequence[str]) -> bool:
    known = output / _CONFIG
    try:
        output.mkdir(parents=True, exist_ok=True)
        if known.exists():
            _refuse_other_run(output, known.read_text(), config, resumable)
            resumed = True
        else:
            _refuse_foreign_files(output)
            resumed = False
        _write_atomically(known, yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise SdftError(
            f"output={output} cannot be used: {error.strerror or error}; give another."
        ) from error
    return resumed


def _refuse_other_run(
    output: epath.Path, text: str, config: Mapping[str, Any], resumable: Sequence[str]
) -> None:
    remedy = f"give another output=, or delete {output}"
    try:
        there = flatten(yaml.safe_load(text))
    except (yaml.YAMLError, AttributeError):
        raise SdftError(f"{output / _CONFIG} is not a run's configuration: {remedy}.") from None
    here = flatten(_plain(config))
    for key in [*here, *(key for key in there if key not in here)]:
        free = any(key == name or key.startswith(name + ".") for name in resumable)
        if not free and there.get(key) != here.get(key):
            raise SdftError(
                f"output={output} holds another run, whose {key} is {there.get(key)!r} where this one has "
                f"{here.get(key)!r}: {remedy}."
            )


def _refuse_foreign_files(output: epath.Path) -> None:
    if not output.exists():  # a bucket has no empty directories
        return
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if names:
        raise SdftError(
            f"output={output} holds files that are not a run's, such as {names[0]}: give another output=, "
            "or delete it."
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from YAML: tuples are lists."""
    return json.loads(json.dumps(config))


def _write_atomically(path: epath.Path, text: str) -> None:
    if is_remote(os.fspath(path)):  # an object appears whole
        path.write_text(text)
        return
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def _steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _newest_intact(directory: epath.Path, steps: Sequence[int]) -> tuple[int | None, dict[int, str]]:
    """Step of the newest intact checkpoint, and what is wrong with newer ones; process 0 decides for all.

    Raises:
        SdftError: there are checkpoints and none is intact.
    """
    skipped: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        wrong = damage(directory / str(step)) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            bad = bool(multihost_utils.broadcast_one_to_all(wrong is not None))
            wrong = (wrong or "see the message of process 0") if bad else None
        if wrong is None:
            return step, skipped
        skipped[step] = f"checkpoint {directory / str(step)} is damaged and was skipped: {wrong}."
    if skipped:
        raise SdftError(
            f"no checkpoint in {directory} is intact ({' '.join(skipped.values())}): restore one from a "
            f"backup, or delete {directory.parent} to start anew."
        )
    return None, {}


def _set_aside(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
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


def _score(checkpoint: epath.Path) -> float | None:
    """Score in the meta item, None where it has none or cannot be read."""
    try:
        return json.loads((checkpoint / "meta" / "metadata").read_text())["metrics"]["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _storage_errors(directory: epath.Path) -> Iterator[None]:
    """Turn a full or forbidden disk into an SdftError, and give back what the failed save had taken."""
    try:
        yield
    except Exception as error:
        reason = storage_reason(error)
        if reason is None:
            raise
        if jax.process_index() == 0:
            for partial in directory.glob(_TEMPORARY):
                with contextlib.suppress(OSError):
                    partial.rmtree()
        raise SdftError(
            f"checkpoints in {directory} cannot be written: {reason}; mend that and start again: the run "
            "resumes from its last good checkpoint."
        ) from error


def storage_reason(error: BaseException | None) -> str | None:
    """The operating system's words, which TensorStore hides in the text of a ValueError."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    while error is not None:
        for code in codes:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None
