"""`sdft evaluate --suite`: tasks of lm-eval with the model in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.batching import FULL_WIDTH
from sdft_jax.evaluation.request_log import RequestLog, open_requests
from sdft_jax.files import write_errors
from sdft_jax.models.hf.tokenizer import listed_eos_ids
from sdft_jax.models.speaker import Speaker
from sdft_jax.plan.footprint import Widths, answer_arrays
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.reporting.tables import summary_table
from sdft_jax.training.compile_cache import enable_compile_cache
from sdft_jax.training.digests import describe
from sdft_jax.training.export import load_speaker, with_template_arguments
from sdft_jax.training.inputs import tokenizer_digests
from sdft_jax.training.out_of_memory import explained
from sdft_jax.training.processes import together

if TYPE_CHECKING:
    from lm_eval.loggers import EvaluationTracker

    from sdft_jax.evaluation.harness import Harness
    from sdft_jax.evaluation.suite_tasks import LoadedTasks

BOOTSTRAPS = 1000
"""Number of draws of a standard error that has no formula. lm-eval has 100,000, in processes that it forks;
a process with JAX must not fork."""


@dataclasses.dataclass(frozen=True)
class SuiteRequest:
    """The tasks of a suite, and their options."""

    names: tuple[str, ...]
    """`prior`, or names of lm-eval's tasks, groups and tags."""
    include: str | None = None
    """Directory with YAML files of tasks."""
    output: str | None = None
    """Directory of the results, and of the answers by which an interrupted evaluation continues."""
    chat_template: bool = False
    """Format prompts with the model's chat template; examples are earlier turns."""
    examples: int | None = None
    """Number of examples in a prompt; None for that of each task."""
    unsafe: bool = False
    """Allow tasks that run code of the model."""


def run(config: Config, request: SuiteRequest) -> dict[str, Any]:
    """Evaluate the tasks, print a table, write lm-eval's files, and return lm-eval's results.

    Args:
        config: its `model`, `mesh`, `eval.limit` (rows of each task) and `eval.batch_size` are read.
        request: the tasks.

    Raises:
        SdftError: lm-eval is not installed, or a mistake in the request or the tasks.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SdftError("--suite requires lm-eval, which is not installed: pip install 'sdft_jax[suite]'.")
    from sdft_jax.evaluation.harness import Harness
    from sdft_jax.evaluation.suite_tasks import PRIOR, LoadedTasks

    reporter = process_reporter()
    if request.examples is not None and request.examples < 0:
        raise SdftError(f"--num-fewshot {request.examples}: give a number of examples, from 0.")
    if request.output:
        with write_errors(request.output, "give another directory"):
            Path(request.output).mkdir(parents=True, exist_ok=True)
    names = [part for name in request.names for part in (PRIOR if name == "prior" else [name])]
    tasks = together(lambda: LoadedTasks(names, request.include, request.unsafe))
    enable_compile_cache()
    config = together(functools.partial(with_template_arguments, config))
    speaker = load_speaker(config)
    count = functools.partial(answer_arrays, widths=Widths(FULL_WIDTH, 0), training=False)
    with (
        _known_answers(request, speaker, config) as log,
        explained("the suite", config, speaker.model, count),
    ):
        harness = Harness(speaker, config, reporter, log)
        for name, tokens in tasks.new_tokens.items():
            harness.require_room(tokens, f"task {name}")
        results, tracker = _evaluate(harness, tasks, request)
    if reporter.writes:
        reporter.print(summary_table(table_rows(results), f"{', '.join(request.names)}, by lm-eval"))
        reporter.print(*_notes(harness, request, results))
        if request.output:
            reporter.print(f"results and answers: {_write(results, tracker, request.output)}")
    return results


@contextlib.contextmanager
def _known_answers(request: SuiteRequest, speaker: Speaker, config: Config) -> Iterator[RequestLog]:
    """Open the answers that this model has given before; in memory only without a directory.

    Several processes would have to agree on them, and begin with the first request instead.
    """
    if not request.output or jax.process_count() > 1:
        yield RequestLog()
        return
    with open_requests(Path(request.output) / f"answers-{_identity(speaker, config)}.jsonl") as log:
        yield log


def _identity(speaker: Speaker, config: Config) -> str:
    """Return a digest of what an answer depends on in addition to its request."""
    model, tokenizer = speaker.model, speaker.tokenizer
    texts = tokenizer_digests(tokenizer, listed_eos_ids(tokenizer, model.source))
    texts |= {"special tokens": tokenizer.encode("a"), "maximum length": tokenizer.model_max_length}
    parts = (
        describe(speaker.params),
        model.architecture.source_json,
        model.compute_dtype,
        config.train.seed,
        texts,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _evaluate(
    harness: Harness, tasks: LoadedTasks, request: SuiteRequest
) -> tuple[dict[str, Any], EvaluationTracker]:
    """Return lm-eval's results, and its writer of files."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # of bootstraps
    tracker = EvaluationTracker(output_path=request.output)
    results = simple_evaluate(
        model=harness,
        model_args={"pretrained": harness.config.model.path},
        tasks=list(tasks.loaded["tasks"]),
        num_fewshot=request.examples,
        batch_size=harness.config.eval.batch_size,
        limit=harness.config.eval.limit,
        bootstrap_iters=BOOTSTRAPS,
        evaluation_tracker=tracker,
        apply_chat_template=request.chat_template,
        task_manager=tasks,
        confirm_run_unsafe_code=request.unsafe,
    )
    assert results is not None  # it is None on other ranks than 0 of torch
    return dict(results), tracker


def table_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each metric of lm-eval's results: of tasks, then of groups.

    A metric of a task is left out if its group has the mean of that metric.
    """
    measured, groups = results["results"], results.get("groups", {})
    parents = {name: parent for parent, names in results.get("group_subtasks", {}).items() for name in names}
    rows = []
    for name in [*(name for name in measured if name not in groups), *reversed(groups)]:
        means = {} if name in groups else groups.get(parents.get(name), {})
        for key, value in measured[name].items():
            metric, _, filter = key.partition(",")
            if not filter or metric.endswith("_stderr") or key in means:
                continue
            error = measured[name].get(f"{metric}_stderr,{filter}")
            rows.append(
                {
                    "task": name,
                    "rows": measured[name].get("sample_len"),
                    "shots": results.get("n-shot", {}).get(name),
                    "metric": metric if filter == "none" else f"{metric} ({filter})",
                    "value": value,
                    "± standard error": error if isinstance(error, float) else None,
                }
            )
    return rows


def _notes(harness: Harness, request: SuiteRequest, results: Mapping[str, Any]) -> list[str]:
    """Return sentences on what a reader of the numbers should know."""
    notes = [
        f"{count} {kind} requests were longer than the model's {harness.max_length} tokens, and lost the "
        "first tokens of their context, as with lm-eval's hf model."
        for kind, count in harness.cuts.items()
        if count
    ]
    if all(task.get("output_type") != "generate_until" for task in results["configs"].values()):
        return notes
    if ignored := harness.ignored_settings():
        values = ", ".join(f"{key}={value}" for key, value in ignored.items())
        notes.append(
            f"Generation ignored {values} of generation_config.json, which lm-eval's hf model applies."
        )
    if request.chat_template and (unlisted := harness.unlisted_end_of_turn()):
        notes.append(
            f"Generation did not stop at {unlisted}, which ends a turn of the chat template, since the "
            "checkpoint does not list it as an EOS: add it to eos_token_id in generation_config.json."
        )
    return notes


def _write(results: dict[str, Any], tracker: EvaluationTracker, output: str) -> str:
    """Write lm-eval's files of results and samples, and return their directory.

    Raises:
        SdftError: a file has not been written, which lm-eval only logs.
    """
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    for name in results["configs"]:
        tracker.save_results_samples(name, samples[name])
    results["samples"] = samples
    directory = Path(output) / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", "")
    files = [f"results_{date}.json", *(f"samples_{name}_{date}.jsonl" for name in results["configs"])]
    for file in files:
        if not (directory / file).is_file():
            raise SdftError(f"{directory / file} has not been written: give another --out; answers are kept.")
    return str(directory)
