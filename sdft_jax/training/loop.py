"""The training loop: resume, step, evaluate, save, report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from sdft_jax.algorithm import (
    Learner,
    abstract_state,
    check_batch,
    check_rows,
    init_state,
    join,
    learning_rates,
    make_learner,
    make_model,
    make_update,
    stored_part,
    stored_student,
    student_params,
)
from sdft_jax.algorithm.update import Update
from sdft_jax.config import Config, sharding_from, to_dict
from sdft_jax.data.batches import HostSlice, make_batches
from sdft_jax.data.encoding import Encoded
from sdft_jax.data.lazy_rows import LazyRows
from sdft_jax.errors import SdftError
from sdft_jax.kernels.numerics import numerics
from sdft_jax.models import Model, model_directory, read_architecture, save_pretrained
from sdft_jax.models.hf.model_card import write_card
from sdft_jax.models.hf.reading import open_reference
from sdft_jax.models.hf.writing import rounding_note
from sdft_jax.plan.footprint import Count, answer_arrays, update_arrays, widths_of
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.rollouts import RolloutRow, write_rollouts
from sdft_jax.reporting.sinks import NO_SINKS, Sinks, open_sinks, read_jsonl, require_services
from sdft_jax.sharding import to_host, tree_shardings
from sdft_jax.training import checkpoint, local_tier
from sdft_jax.training.evaluations import evaluate_run
from sdft_jax.training.inputs import Inputs, fingerprint, load_inputs
from sdft_jax.training.local_tier import LocalTier, delete, open_local_tier
from sdft_jax.training.out_of_memory import explained, refuse_too_large
from sdft_jax.training.phase_timing import SamplingTime, throughputs, time_sampling
from sdft_jax.training.preemption import Interrupted, Terminated, termination_requests
from sdft_jax.training.processes import require_same
from sdft_jax.training.profiling import open_profile, traced
from sdft_jax.training.provenance import read_provenance, write_provenance
from sdft_jax.training.run_card import RunFacts, run_card
from sdft_jax.training.run_directory import RunDirectory, identity
from sdft_jax.training.start import load_base, load_start
from sdft_jax.training.stopping import Scores, score, should_stop
from sdft_jax.types import Metrics, Params, TokenBatch, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of a finished run."""

    model: Model
    params: Params
    step: int
    """The step of the parameters."""
    evaluations: tuple[Mapping[str, Any], ...]
    """One row per evaluation: step, accuracy, prior, kl_to_base, distance, and the teacher's ceiling at step
    0."""
    exported: Path
    """The Hugging Face directory of the model."""


Watch = Callable[[Model, Params, Reporter], Mapping[str, float]]
"""(model, parameters, reporter) -> additional measurements, which join the row of each evaluation. A signal
ends the run within the reporter's `track`."""


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The part of a run that stays the same from step to step."""

    learner: Learner
    inputs: Inputs
    fingerprint: Mapping[str, str]
    """The digests of the inputs."""
    directory: RunDirectory
    steps: int
    base: str
    """The directory of the model that is the reference of distances."""
    update: Update | None
    """None for a method that does not train."""
    batches: Any
    manager: Any
    local: LocalTier | None
    reporter: Reporter
    watch: Watch | None

    @property
    def config(self) -> Config:
        return self.learner.config

    @property
    def run(self) -> str:
        """The digest that binds a checkpoint to this run."""
        return identity(to_dict(self.config))


@numerics()
def train(
    config: Config,
    inputs: Inputs | None = None,
    *,
    reporter: Reporter | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train by `config.train.method` to the last step, resuming the run in `config.output` if there is one.

    Args:
        config: the configuration of the run.
        inputs: from `load_inputs`; loaded if None.
        reporter: prints progress; the default prints on the first process.
        watch: makes additional measurements at each evaluation.

    Raises:
        SdftError: a mistake in configuration or data, a full disk, out of memory, or a non-finite loss.
        Interrupted: the run received SIGTERM, SIGINT or SIGHUP, and has saved its state.
    """
    reporter = reporter or process_reporter()
    sharding = sharding_from(config)
    inputs = inputs or load_inputs(config, reporter)
    prints = fingerprint(inputs)
    require_same(prints, "with the same data and the same model")
    steps = total_steps(config, len(inputs.train))
    batches = make_batches(
        inputs.train,
        config,
        inputs.stop.pad_id,
        host=HostSlice(jax.process_index(), jax.process_count()),
        then=_general_phase(config, inputs, steps),
    )
    base = model_directory(config.eval.base, "eval.base") if config.eval.base else inputs.directory
    source = inputs.source or inputs.directory
    model = make_model(config, read_architecture(inputs.directory), sharding, source)
    learner = make_learner(config, model, steps, inputs.stop)
    _check(config, inputs, model, steps)
    _check_base(config, model, base)
    directory = RunDirectory(config.output)
    update = make_update(learner) if config.method.trains else None
    with directory.claimed(to_dict(config)) as resumed:
        directory.pull(resumed)
        if reporter.writes:
            with reporter.tolerating("the origin of the run"):
                write_provenance(directory.local, config, inputs, prints)
        with _open_tiers(config, directory, resumed, reporter) as tiers:
            loop = _Loop(
                learner, inputs, prints, directory, steps, base, update, batches, *tiers, reporter, watch
            )
            with _training_explained(loop), jax.debug_nans(config.debug.nans):
                state = _run(loop, *_begin(loop))
            checkpoint.wait(loop.manager)
            delete(loop.local)
        return _conclude(loop, state)


@contextlib.contextmanager
def _open_tiers(
    config: Config, directory: RunDirectory, resumed: bool, reporter: Reporter
) -> Iterator[tuple[Any, LocalTier | None]]:
    """Yield the manager of the checkpoints in the output, and the local checkpoints."""
    keep = config.checkpoint
    run = f"{directory.checkpoints} {identity(to_dict(config))}"  # an absolute path
    with (
        checkpoint.open_manager(directory.checkpoints, keep.keep_last, keep.keep_best) as manager,
        open_local_tier(keep.local, keep.local_every, run, resumed, reporter.print) as local,
    ):
        yield manager, local


def _training_explained(loop: _Loop) -> contextlib.AbstractContextManager[None]:
    """Return a context that explains an out-of-memory error of training."""
    return explained(
        "training",
        loop.config,
        loop.learner.model,
        _count_update(loop.inputs),
        directory=loop.directory,
        saved=loop.manager.latest_step,
    )


def _count_update(inputs: Inputs) -> Count:
    """Return a function that counts the arrays of an update on the rows of a run."""
    return functools.partial(update_arrays, widths=widths_of(inputs.train, inputs.general))


def _conclude(loop: _Loop, state: TrainState) -> Run:
    """Export the model of a finished run, and return its results."""
    model, params, step = loop.learner.model, student_params(state), int(state.step)
    if loop.config.train.choose == "best":
        params, step = _best(loop, state)
    # None: with the source's own tokenizer files
    save_pretrained(model, params, None, loop.directory.model)
    rows = tuple(read_jsonl(loop.directory.evaluations)) if loop.reporter.writes else ()
    if loop.reporter.writes:
        with loop.reporter.tolerating("the model's card"):
            facts = RunFacts(loop.config, step, rows, read_provenance(str(loop.directory.local)))
            write_card(loop.directory.model, run_card(facts, Path(loop.config.output).absolute().name))
    loop.directory.push()
    loop.reporter.print(*rounding_note(model, params))
    return Run(model, params, step, rows, loop.directory.model)


def total_steps(config: Config, rows: int) -> int:
    """Return `train.steps`, or the steps of `train.epochs` passes over the rows; 0 if the method does not
    train.
    """
    if not config.method.trains:
        return 0
    steps = config.train.steps or max(1, round(config.train.epochs * rows / config.train.batch_size))
    if steps > _MOST_STEPS:
        name = "steps" if config.train.steps else "epochs"
        key = f"train.{name}={getattr(config.train, name)}"
        raise SdftError(f"{key}: {steps:.3g} steps are more than {_MOST_STEPS:,}, the maximum: lower it.")
    return steps


_MOST_STEPS = 10_000_000


def _begin(loop: _Loop) -> tuple[TrainState, Mapping[str, Any]]:
    """Return the state and meta of the newest checkpoint, or of a new run."""
    learner, inputs = loop.learner, loop.inputs
    restored = _restore(loop, stored_part(learner, abstract_state(learner)))
    if restored is None:
        if read_jsonl(loop.directory.metrics):
            loop.reporter.print("there is no checkpoint of the steps in metrics.jsonl: starting from step 0")
        start = load_start(learner.config, learner.model, inputs.directory)
        return init_state(learner, start), {"step": 0, "metrics": {}, "scores": []}
    _refuse_changed_inputs(loop, restored)
    loop.reporter.print(*restored.skipped, f"resuming from step {restored.step}")
    state = restored.state
    if learner.model.architecture.lora:
        state = dataclasses.replace(state, frozen=load_base(learner.config, learner.model, inputs.directory))
    return state, {"scores": [], "metrics": {}} | restored.meta


def _restore(loop: _Loop, abstract: TrainState) -> checkpoint.Restored | None:
    """Return the newest checkpoint, local or in the output; None if there is none."""
    if loop.local is not None:
        newest = max(checkpoint.steps(loop.manager), default=-1)
        if restored := local_tier.restore(loop.local, abstract, loop.batches, after=newest):
            return restored
    return checkpoint.restore_latest(loop.manager, abstract, loop.batches, loop.run)


def _refuse_changed_inputs(loop: _Loop, restored: checkpoint.Restored) -> None:
    """Raise SdftError if an input is not the one that the run began with."""
    before = restored.meta.get("inputs", {})  # of an older version: no fingerprint
    changed = [name for name, digest in loop.fingerprint.items() if before.get(name, digest) != digest]
    if changed:
        raise SdftError(
            f"{' and '.join(changed)} changed since the run in {loop.config.output} began: restore the old "
            "files, or give another output=."
        )


def _general_phase(config: Config, inputs: Inputs, steps: int) -> tuple[Sequence[Encoded], int] | None:
    """Return the rows of the second phase and the number of steps before it, if the method has one."""
    if not config.method.general:
        return None
    return inputs.general, steps - round(config.train.reinvoke * steps)


def _check(config: Config, inputs: Inputs, model: Model, steps: int) -> None:
    """Raise SdftError, before the run directory is written, if the mesh does not divide the model or a batch,
    if W&B or Trackio is enabled but not installed, for a profile of steps that the run does not have, or if
    the state exceeds a device's memory.
    """
    sharding = model.sharding
    check_batch(config, sharding)
    tree_shardings(sharding, model.logical_axes(), model.abstract_params(config.model.param_dtype))
    require_services(config.report)
    if inputs.new or inputs.prior:
        check_rows(config.eval.batch_size, "eval.batch_size", sharding)
    if config.profile.bounds and config.profile.bounds[1] > steps:
        raise SdftError(
            f"profile.steps={config.profile.steps}: the run has {steps} steps: give a range of them, or null."
        )
    refuse_too_large(config, model, _count_update(inputs))


def _check_base(config: Config, model: Model, base: str) -> None:
    """Raise SdftError, before the run directory is written, if eval.base has other parameters than the
    model.
    """
    try:
        open_reference(base, model.architecture)
    except SdftError as error:
        raise SdftError(
            f"eval.base={config.eval.base} has other parameters than the model: {error}"
        ) from None


def _best(loop: _Loop, state: TrainState) -> tuple[Params, int]:
    """Return (parameters, step) of the checkpoint with the best score, which may be the initial model's."""
    abstract = stored_student(loop.learner)
    best = checkpoint.load(loop.directory.checkpoints, abstract, loop.run, best=True)
    loop.reporter.print(
        *best.skipped, f"the run's model is the checkpoint of step {best.step}, which has the best score"
    )
    return join(best.state["params"], best.state.get("frozen", state.frozen)), best.step


def _run(loop: _Loop, state: TrainState, meta: Mapping[str, Any]) -> TrainState:
    """Run all remaining steps.

    A step's metrics are read after the next step has started, so that the device never waits. A state is
    saved before it is evaluated, so that a failure of the evaluation loses no step; a run that ended between
    the two, or within the evaluation, makes it when it resumes.
    """
    options, step = loop.config.train, int(state.step)
    resumed = bool(step)
    saved = max(checkpoint.steps(loop.manager), default=None)  # older than a local checkpoint
    with (
        _open_sinks(loop, step if resumed else -1, bool(meta["metrics"])) as sinks,
        termination_requests() as requests,
        loop.reporter.training_bar(loop.steps, step) as show,
        open_profile(loop.config.profile, loop.directory.profile, loop.reporter.tolerating) as before_step,
    ):
        reporter = dataclasses.replace(loop.reporter, before_item=requests.check)
        loop = dataclasses.replace(loop, reporter=reporter)
        pending = _Pending(loop, sinks, show)
        try:
            if not resumed and options.choose == "best":
                saved = _save(loop, 0, state, [])
            if not resumed or (_is_evaluated(loop, step) and not meta["metrics"]):
                meta = _evaluate(loop, state, step, saved, sinks, meta["scores"])
                pending.restart()
            stopped = resumed and should_stop(options, meta["scores"], meta["metrics"])
            while step < loop.steps and not stopped:
                try:
                    with _transfer_guard(loop.config):
                        batch = _next_batch(loop)
                except SdftError:  # a row that was not read before the first step
                    pending.settle(saved)
                    _save_unsaved(loop, step, state, saved, meta["scores"])
                    raise
                step += 1
                before_step(step)
                sampling = pending.time_sampling(step, state, batch, saved)
                assert loop.update is not None
                with _transfer_guard(loop.config):
                    with jax.profiler.StepTraceAnnotation("train", step_num=step):
                        state, metrics = loop.update(state, batch)
                    pending.push(step, batch, metrics, sampling, saved)
                requests.listen()
                if _is_saved(loop, step):
                    pending.settle(saved)
                    saved = _save(loop, step, state, meta["scores"])
                elif loop.local is not None and _is_due(step, loop.local.every):
                    pending.settle(saved)
                    _save_locally(loop, loop.local, step, state, meta["scores"])
                if _is_evaluated(loop, step):
                    pending.settle(saved)
                    meta = _evaluate(loop, state, step, saved, sinks, meta["scores"])
                    stopped = should_stop(options, meta["scores"], meta["metrics"])
                    if stopped and saved != step:
                        saved = _save(loop, step, state, meta["scores"], meta)
                    pending.restart()
                requests.check()
        except Terminated as request:
            pending.settle(saved)
            if step not in (0, saved):
                _save(loop, step, state, meta["scores"], meta)
            _interrupt(loop, step, request.by)
        finally:
            _report_dropped(loop)
    return state


def _report_dropped(loop: _Loop) -> None:
    """Print the rows of large sources that were dropped since the start."""
    for rows, kind in ((loop.inputs.train, "rows"), (loop.inputs.general, "general prompts")):
        if isinstance(rows, LazyRows) and rows.dropped.total:
            loop.reporter.print(f"dropped {rows.dropped.total} {kind} while training: {rows.dropped}")


def _interrupt(loop: _Loop, step: int, by: signal.Signals) -> NoReturn:
    """Wait for the last save, and raise Interrupted."""
    checkpoint.wait(loop.manager)
    _push(loop)
    message = f"stopped by {by.name} after step {step}: start the same command again to resume."
    raise Interrupted(message, by) from None


def _push(loop: _Loop) -> None:
    """Copy new files to the bucket, if there is one; what fails is copied with the next save."""
    with loop.reporter.tolerating(loop.directory.output):
        loop.directory.push()


def _is_evaluated(loop: _Loop, step: int) -> bool:
    return step == loop.steps or _is_due(step, loop.config.train.eval_every)


def _is_saved(loop: _Loop, step: int) -> bool:
    """Return True if a step is saved whatever its evaluation shows."""
    options = loop.config.train
    chosen = options.choose == "best" and _is_evaluated(loop, step)
    return step == loop.steps or chosen or _is_due(step, options.save_every)


def _open_sinks(loop: _Loop, restored_step: int, evaluated: bool) -> contextlib.AbstractContextManager[Sinks]:
    if not loop.reporter.writes:
        return contextlib.nullcontext(NO_SINKS)
    return open_sinks(
        loop.config.report,
        loop.directory.local,
        restored_step,
        to_dict(loop.config),
        loop.reporter.print,
        evaluated or not _is_evaluated(loop, restored_step),
    )


def _transfer_guard(config: Config) -> contextlib.AbstractContextManager[None]:
    """Refuse implicit transfers between host and devices: each of them would wait for the device."""
    # These modes run a step operation by operation, which transfers constants.
    flags = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
    if config.debug.nans or any(getattr(jax.config, flag) for flag in flags):
        return contextlib.nullcontext()
    return jax.transfer_guard("disallow")


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Pending:
    """The step whose metrics have not been read yet, and the clock between steps."""

    def __init__(self, loop: _Loop, sinks: Sinks, show: Callable[[int, Mapping[str, float]], None]):
        self.loop, self.sinks, self.show = loop, sinks, show
        self.rates = learning_rates(loop.config.optimizer, loop.steps)
        self.waiting: tuple[Any, ...] | None = None
        self.restart()

    def restart(self) -> None:
        """Restart the clock: the time since the last step belongs to no step."""
        self.since = time.monotonic()

    def push(
        self, step: int, batch: TokenBatch, metrics: Metrics, sampling: SamplingTime | None, saved: int | None
    ) -> None:
        """Report the previous step, and also this one if sampling was timed or the device is the host CPU."""
        self.settle(saved)
        self.waiting = (step, batch, metrics, sampling)
        if sampling or jax.default_backend() == "cpu":
            self.settle(saved)

    def time_sampling(
        self, step: int, state: TrainState, batch: TokenBatch, saved: int | None
    ) -> SamplingTime | None:
        """Return the time of sampling alone, or None if it is not measured at this step."""
        every = self.loop.config.train.phases_every
        if not _is_due(step + every - 2, every):  # from the second step on
            return None
        self.settle(saved)
        sampling = time_sampling(self.loop.learner, state, batch)
        self.restart()
        return sampling

    @traced("report")
    def settle(self, saved: int | None) -> None:
        """Wait for the pending step, and report it."""
        if self.waiting is None:
            return
        (step, batch, metrics, sampling), self.waiting = self.waiting, None
        loop, options = self.loop, self.loop.config.train
        scalars = _finite_scalars(loop, step, batch, metrics, saved)
        seconds = time.monotonic() - self.since
        self.restart()
        scalars |= throughputs(scalars, batch, seconds, sampling)
        scalars["dropped"] = loop.inputs.dropped_share
        scalars["learning_rate"] = float(self.rates[step - 1])
        self.show(step, scalars)
        if step % options.log_every == 0:
            self.sinks.write(step, scalars)
        if _is_due(step, options.rollouts_every):
            _write_rollouts(loop, step, batch, metrics)


def _save(
    loop: _Loop, step: int, state: TrainState, scores: Scores, evaluation: Mapping[str, Any] | None = None
) -> int:
    """Start saving a state, with its evaluation if that has been made; return the step."""
    stored = stored_part(loop.learner, state)
    checkpoint.save(loop.manager, step, stored, loop.batches, _meta(loop, step, scores))
    if evaluation and evaluation["step"] == step:
        checkpoint.record_evaluation(loop.manager, step, evaluation)
    _push(loop)
    return step


def _save_unsaved(loop: _Loop, step: int, state: TrainState, saved: int | None, scores: Scores) -> None:
    """Save the state before an exception ends the run, unless it is the initial or the last saved one.

    With several processes, others may not have failed, and would not join the save.
    """
    if step not in (0, saved) and jax.process_count() == 1:
        _save(loop, step, state, scores)


def _save_locally(loop: _Loop, tier: LocalTier, step: int, state: TrainState, scores: Scores) -> None:
    stored = stored_part(loop.learner, state)
    local_tier.save(tier, step, stored, loop.batches, _meta(loop, step, scores))
    _push(loop)


def _meta(loop: _Loop, step: int, scores: Scores) -> dict[str, Any]:
    """Return what a checkpoint has beside its arrays and the position in the data."""
    return {"step": step, "scores": list(scores), "run": loop.run, "inputs": dict(loop.fingerprint)}


def _evaluate(
    loop: _Loop, state: TrainState, step: int, saved: int | None, sinks: Sinks, scores: Scores
) -> dict[str, Any]:
    """Evaluate the student, write a row, and return it as a checkpoint's meta.

    If the state of this step is not saved and the evaluation fails, the state is saved.
    """
    model, params = loop.learner.model, student_params(state)
    speaker = loop.inputs.speaker(model, params)
    try:
        with _evaluation_explained(loop, step):
            row = evaluate_run(speaker, loop.config, loop.inputs, loop.base, step == 0, loop.reporter)
            best = score(row, loop.config.train)
            row |= loop.watch(model, params, loop.reporter) if loop.watch else {}
    except Terminated:
        raise
    except Exception:
        _save_unsaved(loop, step, state, saved, scores)
        raise
    if row:
        sinks.write_evaluation(step, row)
    meta = {"step": step, "metrics": row | {"score": best}, "scores": [*scores, best]}
    if saved == step:
        checkpoint.record_evaluation(loop.manager, step, meta)
    return meta


def _evaluation_explained(loop: _Loop, step: int) -> contextlib.AbstractContextManager[None]:
    """Return a context that explains an out-of-memory error of an evaluation."""
    widths = widths_of(*(rows.encoded for rows in loop.inputs.eval_sets.values()))
    count = functools.partial(answer_arrays, widths=widths, training=True, base=step > 0)
    return explained(
        f"the evaluation at step {step}",
        loop.config,
        loop.learner.model,
        count,
        directory=loop.directory,
        saved=loop.manager.latest_step,
    )


@traced("wait")
def _finite_scalars(
    loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics, last_saved: int | None
) -> dict[str, float]:
    """Return the scalars on the host. Raises SdftError if loss, gradient or update is not finite."""
    scalars = {name: float(x) for name, x in jax.device_get(metrics.scalars).items()}
    if np.isfinite([scalars[name] for name in ("loss", "grad_norm", "update_norm")]).all():
        return scalars
    finite = np.isfinite(to_host(metrics.divergence)).all(axis=1)
    rows = to_host(batch.row)[slice(None) if finite.all() else ~finite].tolist()
    good = (
        f"the last good checkpoint is that of step {last_saved}"
        if last_saved
        else "no checkpoint was saved yet"
    )
    raise SdftError(
        f"step {step}: loss {scalars['loss']}, gradient norm {scalars['grad_norm']}, update norm "
        f"{scalars['update_norm']} at rows {rows} of {loop.config.data.path}; {good}: "
        "lower optimizer.learning_rate, or check those rows."
    )


@traced("next batch")
def _next_batch(loop: _Loop) -> TokenBatch:
    """Return the next batch as global arrays, split over their rows, from this process's host arrays."""
    rows, batch = loop.learner.model.sharding.named("batch"), next(loop.batches)
    # explicit, but with several processes JAX refuses it
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(rows, batch)


def _write_rollouts(loop: _Loop, step: int, batch: TokenBatch, metrics: Metrics) -> None:
    """Write the first rows of this step's batch with each token's divergence."""
    tokenizer = loop.inputs.tokenizer

    def decode(ids: np.ndarray) -> str:
        return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))

    columns = to_host(
        (
            batch.prompt.tokens,
            batch.prompt.mask,
            metrics.rollout.tokens,
            metrics.rollout.mask,
            metrics.divergence,
            metrics.log_ratio,
        )
    )
    rows = []
    for i in range(min(loop.config.train.rollouts_rows, len(columns[0]))):
        prompt, prompt_mask, ids, mask, divergence, log_ratio = (x[i] for x in columns)
        ids = ids[mask]
        rows.append(
            RolloutRow(
                prompt=decode(prompt[prompt_mask]),
                completion=decode(ids),
                tokens=[decode(token[None]) for token in ids],
                divergence=divergence[mask].tolist(),
                log_ratio=log_ratio[mask].tolist(),
            )
        )
    if loop.reporter.writes:
        with loop.reporter.tolerating(f"the rollouts of step {step}"):
            write_rollouts(loop.directory.rollouts, step, rows)
