"""The outer loop of one method: resume, step, evaluate, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdft_jax import checkpoint
from sdft_jax.baselines import METHODS
from sdft_jax.config import Config, to_dict
from sdft_jax.data import make_batches
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import evaluate
from sdft_jax.models import Model, distance, load_model, read_config, save_pretrained
from sdft_jax.optimizer import learning_rate, make_optimizer
from sdft_jax.partition import join
from sdft_jax.phases import speeds, time_sampling
from sdft_jax.prepare import Prepared, prepare
from sdft_jax.report import (
    EVALUATIONS,
    RolloutRow,
    Sinks,
    open_sinks,
    read_jsonl,
    require_wandb,
    training_bar,
    write_rollouts,
)
from sdft_jax.sharding import Sharding, sharding_from, tree_shardings
from sdft_jax.state import abstract_state, check_batch, check_rows, init_state, sharding_of
from sdft_jax.types import Metrics, Params, TokenBatch, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run leaves."""

    model: Model
    params: Params
    step: int
    evaluations: tuple[Mapping[str, Any], ...]
    """One row per evaluation: step, accuracy, prior, kl_to_base, distance, and the teacher's ceiling at 0."""
    exported: Path


class Interrupted(Exception):
    """SIGTERM: the run has saved its state and can be resumed by the same command."""


def train(config: Config, prepared: Prepared | None = None, *, active: bool = True) -> Run:
    """Train by `config.train.method` until its steps are done, resuming where `config.output` left off.

    Args:
        config: the whole configuration.
        prepared: tokens and tokenizer, from `prepare`; made here unless given.
        active: whether this process reports.

    Raises:
        SdftError: a mistake in configuration or data, a full disk, or numbers that are not finite.
        Interrupted: SIGTERM; the state has been saved.
    """
    sharding = sharding_from(config)
    prepared = prepared or prepare(config, active)
    steps = total_steps(config, len(prepared.train))
    optimizer = make_optimizer(config.optimizer, steps)
    batches = make_batches(
        prepared.train, config.data, batch_size=config.train.batch_size, seed=config.train.seed,
        pad_id=prepared.pad_id, process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    model = Model(
        read_config(prepared.directory), config.model.compute_dtype, config.model.remat, sharding,
        prepared.directory,
    )  # fmt: skip
    _check(config, prepared, model, sharding)
    checkpoint.claim(config.output, to_dict(config))
    step_fn = METHODS[config.train.method](
        model, optimizer, config, eos_ids=prepared.eos, pad_id=prepared.pad_id
    )
    keep = config.checkpoint
    with checkpoint.open_manager(config.output, keep.keep_last, keep.keep_best) as manager:
        restored = checkpoint.restore_latest(manager, abstract_state(model, optimizer, config), batches)
        if restored is None:
            base = load_base(config, prepared, sharding)
            state, meta = init_state(model, base, optimizer, config), {"step": 0, "metrics": {}}
        else:
            for sentence in restored.skipped:
                _say(sentence, active)
            _say(f"resuming from step {restored.step}", active)
            state, meta = restored.state, restored.meta
        loop = _Loop(config, prepared, model, step_fn, batches, manager, steps, active)
        state = _run(loop, state, meta)
    params = join(state.params, state.frozen)
    exported = Path(config.output) / "model"
    save_pretrained(model, params, None, exported)  # with the source's own tokenizer files
    measured = Path(config.output) / EVALUATIONS
    rows = tuple(read_jsonl(measured)) if active else ()
    return Run(model, params, int(state.step), rows, exported)


def _check(config: Config, prepared: Prepared, model: Model, sharding: Sharding) -> None:
    """Refuse what the mesh cannot hold while the run directory is still as it was."""
    check_batch(config, sharding)
    tree_shardings(sharding, model.logical_axes(), model.abstract_params(config.model.param_dtype))
    if config.report.wandb:
        require_wandb(config.report.wandb)
    if prepared.new or prepared.prior:
        check_rows(config.eval.batch_size, "eval.batch_size", sharding)


def total_steps(config: Config, rows: int) -> int:
    """`train.steps`, or as many as `train.epochs` passes over the rows take."""
    return config.train.steps or max(1, round(config.train.epochs * rows / config.train.batch_size))


def load_base(config: Config, prepared: Prepared, sharding: Sharding) -> Params:
    """Parameters of the model that training starts from."""
    return load_model(prepared.directory, dtype=config.model.param_dtype, sharding=sharding)[1]


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What stays the same from step to step."""

    config: Config
    prepared: Prepared
    model: Model
    step_fn: Any
    batches: Any
    manager: Any
    steps: int
    active: bool


def _run(loop: _Loop, state: TrainState, meta: dict[str, Any]) -> TrainState:
    """Step until done. A step's numbers are read after the next one is under way: the device never waits."""
    options, output, step = loop.config.train, Path(loop.config.output), int(state.step)
    resumed, stopped = bool(meta["step"]), _good_enough(loop, meta)
    saved = step if resumed else 0
    with (
        open_sinks(
            loop.config.report, output, step if resumed else -1, to_dict(loop.config), loop.active
        ) as sinks,
        _termination() as terminated,
        training_bar(loop.steps, step, loop.active) as show,
    ):
        if not resumed:
            meta = _evaluate(loop, state, 0, sinks)
        pending = _Pending(loop, sinks, show)
        while step < loop.steps and not stopped and not terminated():
            batch = _place(next(loop.batches), loop.model)
            step += 1
            sampling = None
            if _due(step + options.phases_every - 2, options.phases_every):  # from the second step on
                pending.settle(saved)
                sampling = time_sampling(loop.model, state, batch, loop.config, loop.prepared)
                pending.restart()
            state, metrics = loop.step_fn(state, batch)
            pending.push(step, batch, metrics, sampling, saved)
            done = step == loop.steps
            if done or _due(step, options.eval_every):
                pending.settle(saved)
                meta = _evaluate(loop, state, step, sinks)
                stopped = _good_enough(loop, meta)
                pending.restart()
            if done or stopped or _due(step, options.save_every):
                pending.settle(saved)
                saved = _save(loop, step, state, meta)
        if terminated():
            pending.settle(saved)
            if step != saved:
                _save(loop, step, state, meta)
            checkpoint.wait(loop.manager)
            raise Interrupted(f"stopped by SIGTERM after step {step}; the same command goes on from there.")
    return state


def _good_enough(loop: _Loop, meta: Mapping[str, Any]) -> bool:
    """Whether the evaluation that `meta` holds, if any, reaches `train.stop_at`."""
    goal = loop.config.train.stop_at
    return goal is not None and meta["metrics"].get("accuracy", 0.0) >= goal


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Pending:
    """The step whose numbers have not been read yet, and the clock between steps."""

    def __init__(self, loop: _Loop, sinks: Sinks, show: Callable[[int, Mapping[str, float]], None]):
        self.loop, self.sinks, self.show = loop, sinks, show
        self.rate = learning_rate(loop.config.optimizer, loop.steps)
        self.waiting: tuple[Any, ...] | None = None
        self.restart()

    def restart(self) -> None:
        """What has passed since the last step was read belongs to none."""
        self.since = time.monotonic()

    def push(self, step: int, batch: TokenBatch, metrics: Metrics, sampling: Any, saved: int) -> None:
        """Read the step before this one; this one at once if it is timed, or the host is the device."""
        self.settle(saved)
        self.waiting = (step, batch, metrics, sampling)
        if sampling or jax.default_backend() == "cpu":
            self.settle(saved)

    def settle(self, saved: int) -> None:
        """Wait for the step, and report it."""
        if self.waiting is None:
            return
        (step, batch, metrics, sampling), self.waiting = self.waiting, None
        loop, options = self.loop, self.loop.config.train
        scalars = _finite(loop, step, batch, metrics, saved)
        seconds = time.monotonic() - self.since
        self.restart()
        scalars |= speeds(scalars, batch, seconds, sampling)
        dropped = loop.prepared.dropped.total
        scalars["dropped"] = dropped / (dropped + len(loop.prepared.train))
        scalars["learning_rate"] = float(self.rate(step - 1))
        self.show(step, scalars)
        if step % options.log_every == 0:
            self.sinks.write(step, scalars)
        if _due(step, options.rollouts_every):
            _write_rollouts(loop, step, batch, metrics)


def _save(loop: _Loop, step: int, state: TrainState, meta: Mapping[str, Any]) -> int:
    saved = {"step": step, "metrics": dict(meta["metrics"]) if meta["step"] == step else {}}
    checkpoint.save(loop.manager, step, state, loop.batches, saved)
    return step


def _evaluate(loop: _Loop, state: TrainState, step: int, sinks: Sinks) -> dict[str, Any]:
    """Measure both skills and the distance from the base, write a row, return it as a checkpoint's meta."""
    config, prepared = loop.config, loop.prepared
    params = join(state.params, state.frozen)
    row: dict[str, float] = {}
    options: dict[str, Any] = {"active": loop.active}
    arguments = (prepared.tokenizer, prepared.eos, config)
    base = None
    if step:
        row["distance"] = distance(loop.model, params, prepared.directory)
    if step and (prepared.new or prepared.prior):
        base = load_base(config, prepared, sharding_of(loop.model))
    if prepared.new:
        new = evaluate(
            loop.model, params, prepared.new, *arguments, base=base, description="new skill", **options
        )
        row |= {"accuracy": new.accuracy, "length": new.mean_length}
        row |= {} if new.kl_to_base is None else {"kl_to_base_new": new.kl_to_base}
        if config.eval.teacher and step == 0:
            taught = evaluate(
                loop.model, params, prepared.new, *arguments, teacher=True, description="teacher", **options
            )
            row["teacher"] = taught.accuracy
    if prepared.prior:
        old = evaluate(
            loop.model, params, prepared.prior, *arguments, base=base, description="old skills", **options
        )
        row["prior"] = old.accuracy
        row |= {} if old.kl_to_base is None else {"kl_to_base": old.kl_to_base}
    if loop.active and row:
        sinks.write_evaluation(step, row)
    return {"step": step, "metrics": row}


def _finite(loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics, last_saved: int) -> dict[str, float]:
    """The scalars on the host; stops the run where loss, gradient or update is not finite."""
    scalars = {name: float(x) for name, x in jax.device_get(metrics.scalars).items()}
    if np.isfinite([scalars[name] for name in ("loss", "grad_norm", "update_norm")]).all():
        return scalars
    bad = ~np.isfinite(np.asarray(metrics.divergence)).all(axis=1)
    rows = np.asarray(batch.row)[bad if bad.any() else slice(None)].tolist()
    good = (
        f"the last good checkpoint is that of step {last_saved}"
        if last_saved > 0
        else "nothing was saved yet"
    )
    raise SdftError(
        f"step {step}: loss {scalars['loss']}, gradient norm {scalars['grad_norm']}, update norm "
        f"{scalars['update_norm']} at rows {rows} of {loop.config.data.path}; {good}: "
        "lower optimizer.learning_rate, or look at those rows."
    )


def _place(batch: TokenBatch, model: Model) -> TokenBatch:
    """Host arrays of this process -> global arrays, split over their rows."""
    sharding = sharding_of(model).named("batch")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _write_rollouts(loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics) -> None:
    """The first rows of this step's batch with each token's divergence, to be looked at."""
    tokenizer = loop.prepared.tokenizer
    rows = []
    for i in range(min(loop.config.train.rollouts_rows, batch.prompt.shape[0])):
        prompt, prompt_mask, ids, mask, kl, ratio = (
            np.asarray(x[i])
            for x in (
                batch.prompt, batch.prompt_mask, metrics.rollout.tokens, metrics.rollout.mask,
                metrics.divergence, metrics.log_ratio,
            )
        )  # fmt: skip
        ids = ids[mask]
        rows.append(
            RolloutRow(
                prompt=tokenizer.decode(prompt[prompt_mask].tolist()),
                completion=tokenizer.decode(ids.tolist()),
                tokens=[tokenizer.decode([token]) for token in ids.tolist()],
                divergence=kl[mask].tolist(),
                log_ratio=ratio[mask].tolist(),
            )
        )
    write_rollouts(Path(loop.config.output) / "rollouts", step, rows, loop.active)


@contextlib.contextmanager
def _termination() -> Iterator[Any]:
    """Whether SIGTERM has come; the step under way is finished first."""
    came = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not the main thread, such as in a notebook's executor: nothing to listen to
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _say(text: str, active: bool) -> None:
    if active:
        print(text, flush=True)
