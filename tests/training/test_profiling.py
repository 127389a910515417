"""The trace that a run writes when it is asked for one."""

import pytest
from jax.profiler import ProfileData

from runs import config_of
from sdft_jax.config import load_config
from sdft_jax.config.settings import ProfileConfig
from sdft_jax.errors import SdftError
from sdft_jax.training.loop import train
from sdft_jax.training.profiling import open_profile


def traces(output):
    return sorted(output.glob("profile/plugins/profile/*/*.xplane.pb"))


@pytest.fixture(scope="module")
def trace(half_directory, tmp_path_factory, shared_compilations):
    """Of steps 2 and 3 of a run."""
    output = tmp_path_factory.mktemp("profiled") / "run"
    asked = (
        "profile.steps=2:3",
        "eval.path=null",
        "eval.prior=null",
        "train.steps=4",
        "train.eval_every=0",
    )
    train(config_of(half_directory, output, *asked), active=False)
    (trace,) = traces(output)
    return trace


def test_a_run_traces_the_steps_asked_for_with_the_phases_by_name(trace):
    content = trace.read_bytes()
    assert content.count(b"step_num") >= 1
    for scope in (b"rollout", b"prefill", b"decode", b"teacher", b"student", b"optimizer"):
        assert scope in content, scope


def test_between_updates_the_host_starts_no_program(trace):
    """On an accelerator it would wait in line behind the next update, and the host for it."""
    planes = ProfileData.from_file(str(trace)).planes
    lines = [list(line.events) for plane in planes for line in plane.lines]
    (host,) = (events for events in lines if "train" in {event.name for event in events})
    updates = [event for event in host if event.name == "train"]
    others = [
        event.name
        for event in host
        if event.name.startswith("PjitFunction")
        and not any(update.start_ns <= event.start_ns < update.end_ns for update in updates)
    ]
    assert len(updates) == 2
    assert {"next batch", "wait", "report"} <= {event.name for event in host}
    assert others == []


def test_without_being_asked_there_is_none(tmp_path):
    with open_profile(ProfileConfig(), tmp_path) as before:
        for step in range(1, 4):
            before(step)
    assert traces(tmp_path) == []


def test_a_run_that_stops_in_between_keeps_what_it_has(tmp_path):
    with open_profile(ProfileConfig(steps="1:9"), tmp_path) as before:
        before(1)
        before(2)
    assert len(traces(tmp_path)) == 1


@pytest.mark.parametrize("steps", ["0:3", "4:3", "3", "a:b", "1:2:3"])
def test_what_is_no_range_of_steps_is_refused(steps):
    with pytest.raises(SdftError, match=r"profile\.steps"):
        load_config(None, [f"profile.steps={steps}"])
