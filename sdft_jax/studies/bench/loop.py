"""Steps of the loop behind `sdft train`, compared with the update alone: idle time of the device.

The loop prepares batches, transfers them to the device, and reads and writes the metrics of every step, with
default settings. The update alone runs repeatedly on one batch that stays on the device. If a step of the
loop takes longer, the device is idle for the difference. With --output, timeline.png shows what the host does
during that time, from a trace of additional steps; tracing makes these steps longer. For such a trace of any
run, use `sdft train ... profile.steps=10:13`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sdft_jax.algorithm import init_state, make_learner, make_model, make_update
from sdft_jax.config import Config, load_config
from sdft_jax.config.devices import sharding_from
from sdft_jax.data import make_batches
from sdft_jax.models import load_model, read_architecture
from sdft_jax.reporting.charts import Bar
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.sinks import METRICS, read_jsonl
from sdft_jax.studies.bench.models import SIZES, write_model, write_rows
from sdft_jax.studies.bench.results import Measured, conditions, each_case, parser, positive, publish, shape
from sdft_jax.studies.bench.timeline import Timeline, plot_timelines, read_timeline
from sdft_jax.training.inputs import load_inputs
from sdft_jax.training.loop import train

WARM_UP = 3
"""The number of uncounted steps at the beginning."""
TRACED = 5
"""The number of traced steps at the end of the loop."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A training workload."""

    size: str
    rows: int
    prompt: int
    """The number of tokens of a prompt, and of a demonstration."""
    new: int

    def __str__(self) -> str:
        return f"{self.size}, {self.rows} x ({self.prompt} + {self.new})"


def main(argv: Sequence[str]) -> None:
    """Run the cases that the command line selects."""
    args = _parse_arguments(argv)
    start_conditions = conditions()
    cases = [Case(size, *shape) for size in args.models for shape in args.shapes]
    timelines = {}

    def measure_case(case: Case, _: Any) -> tuple[dict[str, Any], list[Bar], Any]:
        seconds, timelines[str(case)] = measure(case, args.steps, args.overrides)
        return *compare(case, seconds), dataclasses.asdict(case) | {"seconds": seconds}

    rows, bars, details = each_case("loop", cases, measure_case)
    machine = describe_hardware()
    publish(Measured("loop", rows, bars, details, machine, start_conditions), args.output)
    if args.output:
        caption = f"Measured on {machine}; {start_conditions}."
        plot_timelines(timelines, Path(args.output, "timeline.png"), caption)


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    options = parser("loop", __doc__)
    options.add_argument(
        "--models",
        nargs="+",
        choices=list(SIZES),
        default=["0.2M", "4M"],
        help="random models, named by their number of parameters (default: 0.2M 4M)",
    )
    options.add_argument(
        "--shapes",
        nargs="+",
        type=functools.partial(shape, count=3),
        metavar="BxPxN",
        default=[(8, 64, 64)],
        help="rows, tokens of prompt and of demonstration, tokens of completion (default: 8x64x64)",
    )
    options.add_argument(
        "--steps",
        type=positive,
        default=40,
        help="measured steps of the loop and of the update (default: 40)",
    )
    options.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="options for both, such as model.compute_dtype=bfloat16",
    )
    return options.parse_args(argv)


def measure(case: Case, steps: int, overrides: Sequence[str]) -> tuple[dict[str, list[float]], Timeline]:
    """Return the seconds of each counted step of `loop` and of `update` alone, and a timeline."""
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
        metrics = read_jsonl(directory / "run" / METRICS)
        seconds = {
            "loop": [step["seconds"] for step in metrics[WARM_UP:counted]],
            "update": list(itertools.islice(_updates(config), WARM_UP, counted)),
        }
        return seconds, read_timeline(directory / "run")


def _updates(config: Config) -> Iterator[float]:
    """Yield the seconds of each update of one batch, indefinitely."""
    inputs, sharding = load_inputs(config), sharding_from(config)
    model = make_model(config, read_architecture(inputs.directory), sharding)
    params = load_model(inputs.directory, dtype=config.model.param_dtype, sharding=sharding)[1]
    learner = make_learner(config, model, config.train.steps or 1, inputs.stop)
    state, update = init_state(learner, params), make_update(learner)
    batches = make_batches(inputs.train, config, inputs.stop.pad_id)
    batch = jax.device_put(next(batches), sharding.named("batch"))
    while True:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(update(state, batch))
        yield time.perf_counter() - start


def compare(case: Case, seconds: Mapping[str, Sequence[float]]) -> tuple[dict[str, Any], list[Bar]]:
    """Return a table row and its ratio, update seconds over loop seconds, which is 1 without idle time."""
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
    return row, [Bar(str(case), "seconds, update alone", update / loop)]
