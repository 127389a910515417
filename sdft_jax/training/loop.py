"""The outer loop of one method: resume, step, evaluate, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdft_jax.algorithm.baselines import UPDATES, imitation_steps
from sdft_jax.algorithm.optimizer import learning_rates, make_optimizer
from sdft_jax.algorithm.state import (
    abstract_state,
    check_batch,
    check_rows,
    init_state,
    make_model,
    sharding_of,
)
from sdft_jax.algorithm.trainable import join
from sdft_jax.config import Config, to_dict
from sdft_jax.config.devices import sharding_from
from sdft_jax.config.methods import METHODS
from sdft_jax.data import make_batches
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model, read_config, save_pretrained
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.plan.footprint import answer_arrays, update_arrays, widths_of
from sdft_jax.reporting.progress import training_bar
from sdft_jax.reporting.rollouts import RolloutRow, write_rollouts
from sdft_jax.reporting.sinks import EVALUATIONS, Sinks, open_sinks, read_jsonl, require_wandb
from sdft_jax.sharding import Sharding, collect, tree_shardings
from sdft_jax.training import bucket, checkpoint
from sdft_jax.training.evaluations import assess
from sdft_jax.training.inputs import Prepared, prepare
from sdft_jax.training.out_of_memory import explained
from sdft_jax.training.phase_timing import speeds, time_sampling
from sdft_jax.training.profiling import open_profile, traced
from sdft_jax.training.stopping import Scores, enough, score
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


Watch = Callable[[Model, Params], Mapping[str, float]]
"""(model, parameters) -> what else to measure at each evaluation; its numbers join the evaluation's row."""


class Interrupted(Exception):
    """SIGTERM: the run has saved its state and can be resumed by the same command."""


def train(
    config: Config, prepared: Prepared | None = None, *, active: bool = True, watch: Watch | None = None
) -> Run:
    """Train by `config.train.method` until its steps are done, resuming where `config.output` left off.

    Args:
        config: the whole configuration.
        prepared: tokens and tokenizer, from `prepare`; made here unless given.
        active: whether this process reports.
        watch: measures more at each evaluation.

    Raises:
        SdftError: a mistake in configuration or data, a full disk or memory, or numbers that are not finite.
        Interrupted: SIGTERM; the state has been saved.
    """
    sharding = sharding_from(config)
    prepared = prepared or prepare(config, active)
    steps = total_steps(config, len(prepared.train))
    optimizer = make_optimizer(config.optimizer, steps)
    batches = make_batches(
        prepared.train,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        pad_id=prepared.pad_id,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        then=_afterwards(config, prepared, steps),
    )
    base = model_directory(config.eval.base, "eval.base") if config.eval.base else prepared.directory
    model = make_model(config, read_config(prepared.directory), sharding, base)
    _check(config, prepared, model, sharding)
    bucket.pull(config.output, resumed=checkpoint.claim(config.output, to_dict(config)))
    step_fn = UPDATES[config.train.method](
        model, optimizer, config, eos_ids=prepared.eos, pad_id=prepared.pad_id
    )
    keep = config.checkpoint
    with (
        checkpoint.open_manager(config.output, keep.keep_last, keep.keep_best) as manager,
        explained(
            "training",
            config,
            model,
            functools.partial(update_arrays, widths=widths_of((*prepared.train, *prepared.general))),
            output=config.output,
            saved=manager.latest_step,
        ),
    ):
        state, meta = _begin(config, prepared, model, optimizer, manager, batches, active)
        loop = _Loop(config, prepared, model, step_fn, batches, manager, steps, active, base, watch)
        with jax.debug_nans(config.debug.nans):
            state = _run(loop, state, meta)
    params: Params = join(state.params, state.frozen)
    step = int(state.step)
    if config.train.choose == "best":
        params, step = _best(config, state, active)
    directory = bucket.local(config.output)
    exported = directory / "model"
    save_pretrained(model, params, None, exported)  # with the source's own tokenizer files
    bucket.push(config.output)
    rows = tuple(read_jsonl(directory / EVALUATIONS)) if active else ()
    return Run(model, params, step, rows, exported)


def _begin(
    config: Config, prepared: Prepared, model: Model, optimizer: Any, manager: Any, batches: Any, active: bool
) -> tuple[TrainState, Mapping[str, Any]]:
    """State and meta of the newest checkpoint, or of a new run."""
    restored = checkpoint.restore_latest(manager, abstract_state(model, optimizer, config), batches)
    if restored is None:
        start = load_start(config, prepared, sharding_of(model))
        return init_state(model, start, optimizer, config), {"step": 0, "metrics": {}, "scores": []}
    _say("\n".join((*restored.skipped, f"resuming from step {restored.step}")), active)
    return restored.state, {"scores": []} | restored.meta


def _afterwards(config: Config, prepared: Prepared, steps: int) -> tuple[Sequence[Encoded], int] | None:
    """Rows of general use and the steps before their turn, for a method that has such a phase."""
    if not METHODS[config.train.method].general:
        return None
    return prepared.general, imitation_steps(config, steps)


def _check(config: Config, prepared: Prepared, model: Model, sharding: Sharding) -> None:
    """Refuse what the mesh cannot hold while the run directory is still as it was."""
    check_batch(config, sharding)
    tree_shardings(sharding, model.logical_axes(), model.abstract_params(config.model.param_dtype))
    if config.report.wandb:
        require_wandb(config.report.wandb)
    if prepared.new or prepared.prior:
        check_rows(config.eval.batch_size, "eval.batch_size", sharding)


def total_steps(config: Config, rows: int) -> int:
    """`train.steps`, or as many as `train.epochs` passes over the rows take; none for the oracle."""
    if config.train.method == "oracle":
        return 0
    return config.train.steps or max(1, round(config.train.epochs * rows / config.train.batch_size))


def load_start(config: Config, prepared: Prepared, sharding: Sharding) -> Params:
    """Parameters of the model that training starts from."""
    return load_model(prepared.directory, dtype=config.model.param_dtype, sharding=sharding)[1]


def _best(config: Config, state: TrainState, active: bool) -> tuple[Params, int]:
    """(parameters, step) of the checkpoint of highest score; the initial model counts as one."""
    chosen = checkpoint.best(config.output)
    _say(f"the model is that of step {chosen.name}, which has the best score", active)
    parts = {"params": state.params} | ({"frozen": state.frozen} if state.frozen else {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts)
    found = checkpoint.load(chosen, abstract)
    return join(found["params"], found.get("frozen", {})), int(chosen.name)


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
    base: str
    """Directory of the model that distances are measured from."""
    watch: Watch | None


def _run(loop: _Loop, state: TrainState, meta: Mapping[str, Any]) -> TrainState:
    """Step until done. A step's numbers are read after the next one is under way: the device never waits."""
    options, output, step = loop.config.train, bucket.local(loop.config.output), int(state.step)
    resumed = bool(step)
    stopped = resumed and enough(options, meta["scores"], meta["metrics"])
    saved, best = step if resumed else 0, options.choose == "best"
    with (
        open_sinks(
            loop.config.report, output, step if resumed else -1, to_dict(loop.config), loop.active
        ) as sinks,
        _termination() as terminated,
        training_bar(loop.steps, step, loop.active) as show,
        open_profile(loop.config.profile, output) as before_step,
    ):
        if not resumed:
            meta = _evaluate(loop, state, 0, sinks, [])
            if best:
                _save(loop, 0, state, meta)
        pending = _Pending(loop, sinks, show)
        ending = terminated(step)
        while step < loop.steps and not stopped and not ending:
            batch = _next_batch(loop)
            step += 1
            before_step(step)
            sampling = None
            if _due(step + options.phases_every - 2, options.phases_every):  # from the second step on
                pending.settle(saved)
                sampling = time_sampling(loop.model, state, batch, loop.config, loop.prepared)
                pending.restart()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = loop.step_fn(state, batch)
            pending.push(step, batch, metrics, sampling, saved)
            done = step == loop.steps
            evaluated = done or _due(step, options.eval_every)
            if evaluated:
                pending.settle(saved)
                meta = _evaluate(loop, state, step, sinks, meta["scores"])
                stopped = enough(options, meta["scores"], meta["metrics"])
                pending.restart()
            if done or stopped or _due(step, options.save_every) or (best and evaluated):
                pending.settle(saved)
                saved = _save(loop, step, state, meta)
            ending = terminated(step)
        if ending:
            pending.settle(saved)
            if step != saved:
                _save(loop, step, state, meta)
            checkpoint.wait(loop.manager)
            bucket.push(loop.config.output)
            raise Interrupted(f"stopped by SIGTERM after step {step}; the same command goes on from there.")
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Pending:
    """The step whose numbers have not been read yet, and the clock between steps."""

    def __init__(self, loop: _Loop, sinks: Sinks, show: Callable[[int, Mapping[str, float]], None]):
        self.loop, self.sinks, self.show = loop, sinks, show
        self.rates = learning_rates(loop.config.optimizer, loop.steps)
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

    @traced("report")
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
        scalars["learning_rate"] = float(self.rates[step - 1])
        self.show(step, scalars)
        if step % options.log_every == 0:
            self.sinks.write(step, scalars)
        if _due(step, options.rollouts_every):
            _write_rollouts(loop, step, batch, metrics)


def _save(loop: _Loop, step: int, state: TrainState, meta: Mapping[str, Any]) -> int:
    metrics = dict(meta["metrics"]) if meta["step"] == step else {}
    checkpoint.save(
        loop.manager, step, state, loop.batches, {"step": step, "metrics": metrics, "scores": meta["scores"]}
    )
    bucket.push(loop.config.output)
    return step


def _evaluate(loop: _Loop, state: TrainState, step: int, sinks: Sinks, scores: Scores) -> dict[str, Any]:
    """Assess the student, write a row, return it as a checkpoint's meta."""
    params = join(state.params, state.frozen)
    with _evaluation_explained(loop, step):
        row = assess(loop.model, params, loop.config, loop.prepared, loop.base, step, loop.active)
        best = score(row, loop.config.train)
        row |= loop.watch(loop.model, params) if loop.watch else {}
    if loop.active and row:
        sinks.write_evaluation(step, row)
    return {"step": step, "metrics": row | {"score": best}, "scores": [*scores, best]}


def _evaluation_explained(loop: _Loop, step: int) -> contextlib.AbstractContextManager[None]:
    """Where memory does not suffice for the rows that are asked."""
    sets = (loop.prepared.new, loop.prepared.validation, loop.prepared.prior)
    widths = widths_of(encoded for rows in sets if rows for encoded in rows.encoded)
    count = functools.partial(answer_arrays, widths=widths, training=True, base=step > 0)
    return explained(
        f"the evaluation at step {step}",
        loop.config,
        loop.model,
        count,
        output=loop.config.output,
        saved=loop.manager.latest_step,
    )


@traced("wait")
def _finite(loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics, last_saved: int) -> dict[str, float]:
    """The scalars on the host; stops the run where loss, gradient or update is not finite."""
    scalars = {name: float(x) for name, x in jax.device_get(metrics.scalars).items()}
    if np.isfinite([scalars[name] for name in ("loss", "grad_norm", "update_norm")]).all():
        return scalars
    bad = ~np.isfinite(np.asarray(metrics.divergence)).all(axis=1)
    rows = collect(batch.row)[bad if bad.any() else slice(None)].tolist()
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


@traced("next batch")
def _next_batch(loop: _Loop) -> TokenBatch:
    """Host arrays of this process -> global arrays, split over their rows."""
    rows = sharding_of(loop.model).named("batch")
    return jax.make_array_from_process_local_data(rows, next(loop.batches))


def _write_rollouts(loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics) -> None:
    """The first rows of this step's batch with each token's divergence, to be looked at."""
    tokenizer = loop.prepared.tokenizer
    columns = collect(
        (
            batch.prompt,
            batch.prompt_mask,
            metrics.rollout.tokens,
            metrics.rollout.mask,
            metrics.divergence,
            metrics.log_ratio,
        )
    )
    rows = []
    for i in range(min(loop.config.train.rollouts_rows, batch.prompt.shape[0])):
        prompt, prompt_mask, ids, mask, kl, ratio = (x[i] for x in columns)
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
    write_rollouts(bucket.local(loop.config.output) / "rollouts", step, rows, loop.active)


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after this step because SIGTERM has come; several processes stop after the same one.

    There JAX listens itself, on whichever host the signal comes; maintenance.py makes one of announcements.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not the main thread, such as in a notebook's executor: nothing to listen to
        yield lambda _: False
        return
    try:
        yield lambda _: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _say(text: str, active: bool) -> None:
    if active:
        print(text, flush=True)
