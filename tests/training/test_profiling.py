"""The trace of a few steps: named phases on the device, named work on the host."""

import pytest
from jax.profiler import ProfileData

from runs import config_of
from sdft_jax.config import load_config
from sdft_jax.config.settings import ProfileConfig
from sdft_jax.errors import SdftError
from sdft_jax.training.loop import train
from sdft_jax.training.profiling import open_profile


def traces(directory):
    return sorted(directory.glob("plugins/profile/*/*.xplane.pb"))


@pytest.fixture(scope="module")
def trace(half_directory, tmp_path_factory, shared_compilations):
    """The trace of steps 2 and 3 of a run."""
    output = tmp_path_factory.mktemp("profiled") / "run"
    settings = (
        "profile.steps=2:3",
        "eval.path=null",
        "eval.prior=null",
        "train.steps=4",
        "train.eval_every=0",
        "train.save_every=0",
    )
    train(config_of(half_directory, output, *settings))
    (trace,) = traces(output / "profile")
    return trace


def test_run_traces_the_configured_steps_with_named_phases(trace):
    content = trace.read_bytes()
    assert content.count(b"step_num") >= 1
    for scope in (b"rollout", b"prefill", b"decode", b"teacher", b"student", b"optimizer"):
        assert scope in content, scope


def test_host_starts_no_program_between_updates(trace):
    """On an accelerator it would be queued behind the next update, and the host would wait for both."""
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


def test_no_trace_by_default(tmp_path):
    with open_profile(ProfileConfig(), tmp_path) as before_step:
        for step in range(1, 4):
            before_step(step)
    assert traces(tmp_path) == []


def test_run_that_ends_between_the_steps_keeps_its_trace(tmp_path):
    with open_profile(ProfileConfig(steps="1:9"), tmp_path) as before_step:
        before_step(1)
        before_step(2)
    assert len(traces(tmp_path)) == 1


@pytest.mark.parametrize("steps", ["0:3", "4:3", "3", "a:b", "1:2:3"])
def test_invalid_range_of_steps_is_refused(steps):
    with pytest.raises(SdftError, match=r"profile\.steps"):
        load_config(None, [f"profile.steps={steps}"])
