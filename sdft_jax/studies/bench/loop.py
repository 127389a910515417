"""Steps of the loop behind `sdft train` beside the update alone: what a device waits for between steps.

The loop makes batches, places them, reads and writes the numbers of every step, with its default settings;
the update alone runs on one batch that lies on the device, call after call. Where the loop takes longer, the
device is idle. With --output, timeline.png shows what the host does then, from a trace of further steps;
tracing makes them longer. `sdft train ... profile.steps=10:13` writes such a trace of any run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sdft_jax.algorithm.baselines import UPDATES
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state, make_model
from sdft_jax.config import Config, load_config
from sdft_jax.config.devices import sharding_from
from sdft_jax.data import make_batches
from sdft_jax.models import load_model, read_config
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.sinks import METRICS, read_jsonl
from sdft_jax.studies.bench.models import SIZES, write_model, write_rows
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish
from sdft_jax.studies.bench.timeline import Timeline, plot_timelines, read_timeline
from sdft_jax.training.inputs import prepare
from sdft_jax.training.loop import train

WARM_UP = 3
"""Steps at the beginning that are not counted."""
TRACED = 5
"""Steps at the end of the loop that are traced."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained."""

    size: str
    rows: int
    prompt: int
    """Tokens of a prompt, and of a demonstration."""
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.rows} x ({self.prompt} + {self.new})"


def main(words: Sequence[str]) -> None:
    """Run the cases of the command line."""
    a = _arguments(words)
    began = conditions()
    cases = [Case(size, *shape) for size in a.models for shape in a.shapes]
    timelines = {}

    def measured(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, timelines[str(case)] = measure(case, a.steps, a.overrides)
        return *compare(case, seconds), dataclasses.asdict(case) | {"seconds": seconds}

    rows, bars, details = each_case("loop", cases, measured)
    found = Measured("loop", rows, bars, details, describe_hardware(), began)
    publish(found, a.output)
    if a.output:
        plot_timelines(timelines, Path(a.output, "timeline.png"), f"Measured on {found.machine}; {began}.")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    made = parser("loop", __doc__)
    made.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "4M"],
        help="random models by their parameters (0.2M 4M)",
    )
    made.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="BxPxN",
        default=[(8, 64, 64)],
        help="rows, tokens of prompt and demonstration, of completion (8x64x64)",
    )
    made.add_argument("--steps", type=positive, default=40, help="counted steps of each (40)")
    made.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="options of both, such as model.compute_dtype=bfloat16",
    )
    return made.parse_args(words)


def _shape(text: str) -> tuple[int, int, int]:
    rows, prompt, new = map(int, text.split("x"))  # argparse tells of a ValueError
    return rows, prompt, new


def measure(case: Case, steps: int, overrides: Sequence[str]) -> tuple[dict[str, list[float]], Timeline]:
    """Seconds of every counted step, of `loop` and `update` alone; what a trace tells of further ones."""
    with tempfile.TemporaryDirectory() as scratch:
        directory, counted = Path(scratch), WARM_UP + steps
        write_model(case.size, directory / "model")
        rows = case.rows * (counted + TRACED)
        write_rows(directory / "model", directory / "rows.jsonl", rows, case.prompt, case.prompt)
        keys = {
            "model.path": directory / "model",
            "model.compute_dtype": "float32",
            "data.path": directory / "rows.jsonl",
            "data.overlong": "error",
            "output": directory / "run",
            "train.batch_size": case.rows,
            "train.steps": counted + TRACED,
            "train.save_every": 0,
            "train.phases_every": 0,
            "train.rollouts_every": 0,
            "sampling.max_new_tokens": case.new,
            "profile.steps": f"{counted + 1}:{counted + TRACED}",
            "mesh.fsdp": 1,
        }
        config = load_config(None, [*(f"{key}={value}" for key, value in keys.items()), *overrides])
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
        told = read_jsonl(directory / "run" / METRICS)
        seconds = {
            "loop": [step["seconds"] for step in told[WARM_UP:counted]],
            "update": list(itertools.islice(_updates(config), WARM_UP, counted)),
        }
        return seconds, read_timeline(directory / "run")


def _updates(config: Config) -> Iterator[float]:
    """Seconds of each update of one batch, without end."""
    prepared, sharding = prepare(config, active=False), sharding_from(config)
    model = make_model(config, read_config(prepared.directory), sharding)
    params = load_model(prepared.directory, dtype=config.model.param_dtype, sharding=sharding)[1]
    optimizer = make_optimizer(config.optimizer, config.train.steps or 1)
    state = init_state(model, params, optimizer, config)
    update = UPDATES[config.train.method](
        model, optimizer, config, eos_ids=prepared.eos, pad_id=prepared.pad_id
    )
    batches = make_batches(
        prepared.train, config.data, batch_size=config.train.batch_size, seed=0, pad_id=prepared.pad_id
    )
    batch = jax.device_put(next(batches), sharding.named("batch"))
    while True:
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, batch))
        yield time.perf_counter() - begun


def compare(case: Case, seconds: Mapping[str, Sequence[float]]) -> tuple[dict[str, Any], list[Bar]]:
    """A row of the table and its ratio: the update's seconds over the loop's, 1 where nothing waits."""
    loop, update = (statistics.median(seconds[side]) for side in ("loop", "update"))
    row = {
        "model": case.size,
        "rows": case.rows,
        "tokens": f"{case.prompt} + {case.new}",
        "a step of the loop": f"{1e3 * loop:.1f} ms",
        "its update alone": f"{1e3 * update:.1f} ms",
        "between steps": f"{1e3 * (loop - update):.1f} ms",
        "idle": f"{100 * (1 - update / loop):.1f} %",
    }
    return row, [Bar(str(case), "the update alone over a step of the loop", update / loop)]
