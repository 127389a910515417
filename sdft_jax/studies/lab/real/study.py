"""The study on a pretrained model: tasks, settings, and the work of one trial.

A trial trains with `training.train` and measures with `continual.arms`, as every experiment of the lab, and
also measures the perplexity of plain text. Results keep every answer, and the report scores them
(`Task.score`), so that another scorer needs no new trial.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.algorithm import make_model
from sdft_jax.config import PRESETS, from_dict, method_named, sharding_from
from sdft_jax.config.overrides import merge
from sdft_jax.continual.arms import Plan, make_plan, measure, measure_base
from sdft_jax.continual.stages import Arm, arm_config
from sdft_jax.data.encoding import encode_texts, make_format
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.loglikelihood import Limits, Request, score_continuations
from sdft_jax.files import write_text
from sdft_jax.files.hashing import short_digest
from sdft_jax.models import Model, read_architecture
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.studies.lab.real import facts, general, rules, tools
from sdft_jax.training.loop import train
from sdft_jax.training.run_directory import RunDirectory
from sdft_jax.training.start import load_start
from sdft_jax.types import Params

Row = dict[str, Any]
Tree = Mapping[str, Any]

NEW = "new"
"""The name of the stage, and of its measurement."""
LONGEST = 512
"""Maximum length of a plain text, in tokens."""
TEMPLATE = "$demonstration\n\nQuestion: $question\nAnswer:"
"""The teacher's last user turn; $demonstration is the row's context."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to learn, and its evaluation."""

    name: str
    title: str
    train: Callable[[], Sequence[Row]]
    validation: Callable[[], Sequence[Row]]
    """Rows that choose the learning rate."""
    test: Callable[[], Sequence[Row]]
    score: Callable[[str, Row], bool]
    texts: Callable[[], Sequence[str]] | None = None
    """Articles for continual pre-training."""


TASKS = {
    "rule": Task("rule", "A shared rule", rules.train, rules.validation, rules.test, rules.score),
    "tools": Task("tools", "A tool format", tools.train, tools.validation, tools.test, tools.score),
    "facts": Task(
        "facts", "New facts", facts.train, facts.validation, facts.test, facts.score, facts.articles
    ),
}

SETTINGS: Tree = {
    "model": {"compute_dtype": "float32", "remat": "none"},
    "lora": {"rank": 16, "alpha": 32},
    "data": {
        "context": "context",
        "overlong": "error",
        "template": TEMPLATE,
        "max_prompt": 48,
        "max_teacher_prompt": 144,
        "prompt_buckets": [48],
        "teacher_buckets": [144],
    },
    "sampling": {"max_new_tokens": 16, "temperature": 0.7},
    "teacher": {"schedule": "frozen"},
    "divergence": {"alpha": 0.0},
    "optimizer": {"schedule": "constant", "warmup": 4},
    "train": {
        "batch_size": 8,
        "steps": 24,
        "save_every": 0,
        "rollouts_every": 0,
        "phases_every": 0,
    },
    "checkpoint": {"keep_last": 1, "keep_best": 0},
    "eval": {"batch_size": 16, "task": "contains", "max_new_tokens": 20},
    "mesh": {"fsdp": 1},
}
"""Settings that all trials share: buckets of one length, so that all tasks share compiled programs."""


def rows_of(task: Task) -> dict[str, Sequence[Row]]:
    """Return the rows of a task and of the prior suite, by the name of their file."""
    texts = [{"text": text} for text in task.texts()] if task.texts else []
    rows = {
        "train": task.train(),
        "validation": task.validation(),
        "test": task.test(),
        "texts": texts,
        "prior": general.rows(),
    }
    return {name: part for name, part in rows.items() if part}


def digest(task: Task) -> str:
    """Return a checksum of a task's rows and of the plain text, a part of the keys of its trials."""
    return short_digest(json.dumps([rows_of(task), general.TEXTS]))


def configuration(settings: Mapping[str, Any], output: Path) -> Tree:
    """Write the rows of a trial's task to `output`, and return its configuration as nested keys."""
    output.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in rows_of(TASKS[settings["task"]]).items():
        files[name] = str(output / f"{name}.jsonl")
        write_text(Path(files[name]), "".join(f"{json.dumps(row)}\n" for row in rows))
    source = files["texts" if settings["method"] == "cpt" else "train"]
    stage = {
        "name": NEW,
        "data": {"path": source},
        "eval": {"path": files["test"], "validation": files["validation"]},
    }
    own = {
        "output": str(output / "run"),
        "model": {"path": settings["model"]},
        "eval": {"prior": files["prior"]},
        "continual": {"stages": (stage,)},
    }
    return merge(settings["config"], own)


def perform(settings: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Train and measure one model, or measure the base model, alone and with the context.

    Returns:
        `measured` and, for the base model, `teacher`: the results of `continual.arms.measure`; `perplexity`
        of the plain text; `loss` of each step; `seconds` and `cpu_seconds` of the training, of all cores.
    """
    config = from_dict(merge(PRESETS["sdft"], configuration(settings, output)), "lab real")
    method = method_named(settings["method"])
    plan = make_plan(config, [method], process_reporter())
    if not method.trains:
        return _base(plan)
    stage = plan.stages[0]
    directory = RunDirectory(config.output).below(stage.name)
    arm = Arm(method, settings["rate"], settings["seed"])
    inputs = dataclasses.replace(plan.inputs[method.name][0], new=None, validation=None, prior=None)
    start, cpu_start = time.monotonic(), time.process_time()
    run = train(arm_config(stage, arm, True, directory.output), inputs, reporter=plan.reporter)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
    lines = (directory.local / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    return {
        "measured": measure(plan, run.model, run.params),
        "perplexity": perplexity(plan, run.model, run.params),
        "loss": losses,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def _base(plan: Plan) -> dict[str, Any]:
    """Return the results of the base model."""
    measured = measure_base(plan)
    config, directory = plan.config, plan.first_inputs.directory
    model = make_model(config, read_architecture(directory), sharding_from(config), directory)
    params = load_start(config, model, directory)
    return {
        "measured": measured["student"],
        "teacher": measured["teacher"],
        "perplexity": perplexity(plan, model, params),
    }


def perplexity(plan: Plan, model: Model, params: Params) -> float:
    """Return the perplexity of the plain text, per token."""
    speaker, config = plan.first_inputs.speaker(model, params), plan.config
    format = make_format(speaker.tokenizer, config.data, speaker.eos_ids, speaker.vocab_size)
    examples = [Example("", text, None, row, "the plain text") for row, text in enumerate(general.TEXTS)]
    rows, _ = encode_texts(examples, format, dataclasses.replace(config.data, max_teacher_prompt=LONGEST))
    requests = [Request(tuple(row.prompt.tolist()), tuple(row.target.tolist())) for row in rows]
    limits = Limits(LONGEST, config.eval.batch_size, config.divergence.chunk)
    total = sum(score.logprob for _, score in score_continuations(speaker, requests, limits))
    return math.exp(-total / sum(len(request.continuation) for request in requests))
