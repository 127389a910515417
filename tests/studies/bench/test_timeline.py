"""What a trace tells of device and host, on a real one and on lines made by hand."""

import dataclasses

import jax
import pytest

from sdft_jax.studies.bench import timeline
from sdft_jax.studies.bench.timeline import merge, read_timeline


@dataclasses.dataclass(frozen=True)
class Named:
    """A plane, or a line of one, as a profile has them."""

    name: str
    lines: tuple = ()
    events: tuple = ()


@dataclasses.dataclass(frozen=True)
class Event:
    start_ns: float
    end_ns: float
    name: str = ""
    stats: tuple = ()


def test_spans_that_touch_or_overlap_are_one():
    assert merge([(5, 6), (0, 2), (1, 3), (3, 4), (5.2, 5.4)]) == [(0, 4), (5, 6)]
    assert merge([]) == []


def test_of_a_cpu_the_work_is_from_the_first_to_the_last_operation_of_each_program():
    """Two programs on two threads; what belongs to none is the host's."""
    one, two = (("hlo_op", "dot"), ("run_id", 7)), (("run_id", 8),)
    threads = (
        Named("first", events=(Event(10, 20, stats=one), Event(60, 65, stats=two))),
        Named("second", events=(Event(30, 40, stats=one), Event(0, 99, "train"))),
    )
    assert sorted(timeline._work([Named("/host:CPU", threads)])) == [(10, 40), (60, 65)]


@pytest.mark.parametrize(
    ("platform", "lines", "expected"),
    [
        ("GPU", {"Stream #1": (1, 2), "Stream #2": (4, 7)}, [(1, 2), (4, 7)]),
        ("TPU", {"Steps": (0, 9), "XLA Modules": (1, 7), "XLA Ops": (1, 2)}, [(1, 7)]),
    ],
)
def test_an_accelerators_work_stands_in_its_own_plane(platform, lines, expected):
    made = tuple(Named(name, events=(Event(*span),)) for name, span in lines.items())
    host = Named("/host:CPU", (Named("python", events=(Event(0, 99, stats=(("run_id", 1),)),)),))
    planes = [host, Named(f"/device:{platform}:1", ()), Named(f"/device:{platform}:0", made)]
    assert list(timeline._work(planes)) == expected


def test_a_real_trace_has_updates_on_host_and_device(tmp_path):
    update = jax.jit(lambda x: x @ x)
    x = jax.numpy.ones((256, 256))
    jax.block_until_ready(update(x))
    with jax.profiler.trace(tmp_path / "profile"):
        for step in range(3):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                result = update(x)
            with jax.profiler.TraceAnnotation("wait"):
                jax.block_until_ready(result)
    found = read_timeline(tmp_path)
    assert found.steps[0] == 0
    assert len(found.steps) == len(found.device) == len(found.host["wait"]) == 3
    for number, (begin, end) in enumerate(found.device):
        assert found.steps[number] <= begin < end <= found.host["wait"][number][1]
    assert found.host["report"] == []
