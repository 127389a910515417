"""Advice for updates that do not fit, compared with the compiler's numbers for the changed settings."""

import dataclasses
import functools

import pytest

from plans import SETTINGS, describe_model
from sdft_jax.config import load_config
from sdft_jax.plan.advice import Advice, advise
from sdft_jax.plan.candidates import make_candidates
from sdft_jax.plan.estimate import estimate
from sdft_jax.plan.footprint import GIB, as_size
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.topologies import Topology

ADAPTERS = "lora.rank=32 (trains only adapters of this rank)"


def test_lines_have_the_memory_and_the_certainty():
    counted = Advice("model.remat=full (slower)", 3 * GIB, 4 * GIB, compiled=False)
    assert str(counted) == "model.remat=full (slower): needs about 3.00 GiB, should fit with 1.00 GiB free"
    compiled = dataclasses.replace(counted, compiled=True)
    assert str(compiled) == "model.remat=full (slower): needs 3.00 GiB, fits with 1.00 GiB free"
    assert str(dataclasses.replace(compiled, limit=2 * GIB)).endswith(": needs 3.00 GiB, 1.00 GiB too much")


def test_advice_is_confirmed_by_the_compiler(tmp_path_factory, compiled_once):
    """On a chip with too little memory for one setting; on one with far too little, nothing is compiled."""
    pytest.importorskip("libtpu")
    directory = describe_model(tmp_path_factory)

    def planned(candidate, *settings):
        config = load_config(directory / "run.yaml", [*SETTINGS, "model.remat=none", *settings])
        architecture = model_shape(config)
        result = estimate(config, architecture, candidate)
        return result, functools.partial(advise, config, architecture, result, candidate)

    (whole,) = make_candidates(load_config(None), ["v5e-1"], "fsdp=1", [])

    def with_memory(size):
        generation = dataclasses.replace(whole.topology.generation, hbm_gib=size / GIB)
        return dataclasses.replace(whole, topology=Topology(generation, whole.topology.shape))

    large, advice = planned(whole)
    assert advice(compiling=True) == ()
    changed, _ = planned(whole, "lora.rank=32")
    margin = (large.peak - changed.peak) / 2
    current, advice = planned(with_memory(changed.peak + margin))
    assert not current.fits
    first, *others, larger = advice(compiling=True)
    assert first == f"{ADAPTERS}: needs {as_size(changed.peak)}, fits with {as_size(margin)} free"
    assert all("needs about" in line for line in others)  # one confirmed change is enough
    assert larger == "without a change, it should fit on v5e-1, v6e-1 or v5p-8, as counted from shapes"
    assert all("needs about" in line for line in advice(compiling=False)[:-1])
    _, advice = planned(with_memory(current.state / 10))
    *lines, last, _ = advice(compiling=True)
    assert last == "none of these changes is enough: use more chips"
    assert all(line.endswith("too much") for line in lines)
    assert lines[0].startswith(f"{ADAPTERS}: needs ")
    assert lines[-1].startswith("lora.rank=")
    assert " with train.micro_batch=" in lines[-1]
