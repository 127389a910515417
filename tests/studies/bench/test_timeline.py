"""Timelines of device and host, read from a real trace and from planes built by hand."""

import dataclasses

import jax
import pytest

from sdft_jax.studies.bench import timeline
from sdft_jax.studies.bench.timeline import merge, read_timeline


@dataclasses.dataclass(frozen=True)
class Named:
    """A plane of a profile, or a line of a plane."""

    name: str
    lines: tuple = ()
    events: tuple = ()


@dataclasses.dataclass(frozen=True)
class Event:
    start_ns: float
    end_ns: float
    name: str = ""
    stats: tuple = ()


def test_merge_joins_spans_that_touch_or_overlap():
    assert merge([(5, 6), (0, 2), (1, 3), (3, 4), (5.2, 5.4)]) == [(0, 4), (5, 6)]
    assert merge([]) == []


def test_cpu_work_spans_the_first_to_the_last_operation_of_each_execution():
    """Two executions on two threads; events without a run ID belong to the host."""
    first, second = (("hlo_op", "dot"), ("run_id", 7)), (("run_id", 8),)
    threads = (
        Named("first", events=(Event(10, 20, stats=first), Event(60, 65, stats=second))),
        Named("second", events=(Event(30, 40, stats=first), Event(0, 99, "train"))),
    )
    assert sorted(timeline._work([Named("/host:CPU", threads)])) == [(10, 40), (60, 65)]


@pytest.mark.parametrize(
    ("platform", "lines", "expected"),
    [
        ("GPU", {"Stream #1": (1, 2), "Stream #2": (4, 7)}, [(1, 2), (4, 7)]),
        ("TPU", {"Steps": (0, 9), "XLA Modules": (1, 7), "XLA Ops": (1, 2)}, [(1, 7)]),
    ],
)
def test_accelerator_work_is_in_the_plane_of_the_first_device(platform, lines, expected):
    device_lines = tuple(Named(name, events=(Event(*span),)) for name, span in lines.items())
    host = Named("/host:CPU", (Named("python", events=(Event(0, 99, stats=(("run_id", 1),)),)),))
    planes = [host, Named(f"/device:{platform}:1", ()), Named(f"/device:{platform}:0", device_lines)]
    assert list(timeline._work(planes)) == expected


def test_real_trace_has_updates_on_host_and_device(tmp_path):
    update = jax.jit(lambda x: x @ x)
    x = jax.numpy.ones((256, 256))
    jax.block_until_ready(update(x))
    with jax.profiler.trace(tmp_path / "profile"):
        for step in range(3):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                result = update(x)
            with jax.profiler.TraceAnnotation("wait"):
                jax.block_until_ready(result)
    measured = read_timeline(tmp_path)
    assert measured.steps[0] == 0
    assert len(measured.steps) == len(measured.device) == len(measured.host["wait"]) == 3
    for number, (begin, end) in enumerate(measured.device):
        assert measured.steps[number] <= begin < end <= measured.host["wait"][number][1]
    assert measured.host["report"] == []
