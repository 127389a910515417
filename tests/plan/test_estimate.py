"""A small update compiled for TPUs, compared with counts by hand; and the reports of the compiler."""

import doctest

import jax
import pytest

from plans import SETTINGS, describe_model, made_estimate, pattern_examples
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan import estimate as estimate_module
from sdft_jax.plan.candidates import make_candidates
from sdft_jax.plan.estimate import _Program, _refused, _temporaries, estimate, phase_of
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import plan
from sdft_jax.plan.program import model_shape


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return describe_model(tmp_path_factory)


def setting(directory, *overrides):
    return load_config(directory / "run.yaml", [*SETTINGS, *overrides])


def test_compiled_update_has_the_numbers_that_can_be_counted_by_hand(directory):
    pytest.importorskip("libtpu")
    config = setting(directory)
    candidates = make_candidates(config, ["v5e-4"], "fsdp=2,tensor=2", [])
    ((result,), left_out) = plan(config, candidates, largest=True, show=lambda *_: None)
    assert left_out == []
    # Embedding and head; per layer q and o, k and v, three of the feed-forward; norms are negligible.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
    weights = 2 * 512 * 128 + 2 * layer
    assert result.parts["parameters"] == pytest.approx(4 * weights / 4, rel=0.02)
    assert result.parts["optimizer"] == pytest.approx(2 * result.parts["parameters"], rel=0.01)
    # attention is split into the two parts of `tensor`, everything else into four
    attention = 2 * (2 * 128 * 128 + 2 * 128 * 64)
    decoding = attention / 2 + (weights - attention) / 4
    assert result.parts["decoding weights"] == pytest.approx(2 * decoding, rel=0.02)
    # keys and values of 2 layers, 8 / 2 rows, 64 slots, 2 / 2 heads of width 32, two bytes each
    assert result.parts["KV cache"] == 2 * 2 * 4 * 64 * 1 * 32 * 2
    assert result.peak > result.state > 0
    assert sum(result.temporaries.values()) == pytest.approx(result.peak - result.state, rel=0.01)
    assert result.fits
    assert result.compiled
    assert result.largest_batch > 8
    # Each weight of the decoder is multiplied with each of 8 x 64 student tokens four times (forward, twice
    # backward, once for rematerialization), and with 8 x 96 teacher tokens and 8 x 64 sampled tokens once.
    # The head only multiplies completions: three times for the student, once for the teacher, once sampled.
    decoder, head, rows = 2 * layer, 512 * 128, 8
    products = decoder * rows * (4 * 64 + 96 + 63) + head * rows * 32 * (3 + 1 + 1)
    assert 4 * result.flops == pytest.approx(2 * products, rel=0.15)  # attention is not in `products`
    assert {"prefill", "decode", "teacher", "student", "backward"} <= result.seconds.keys()
    assert {x.kind for x in result.exchanges} >= {"all-gather", "all-reduce"}
    assert result.roofline.keys() == {"rollout", "learn"}


@pytest.mark.parametrize("override", ["teacher.schedule=live", "train.method=sft"])
def test_update_without_a_copy_of_the_teacher(override, directory):
    pytest.importorskip("libtpu")
    config = setting(directory, override)
    (candidate,) = make_candidates(config, ["v5e-1"], "fsdp=1", [])
    result = estimate(config, model_shape(config), candidate)
    assert result.parts["teacher"] == 0
    assert result.peak > result.parts["parameters"] + result.parts["optimizer"] > 0


def test_update_whose_state_is_too_large_is_not_compiled():
    pytest.importorskip("libtpu")
    config = load_config(None, ["model.path=Qwen2.5-7B"])
    (candidate,) = make_candidates(config, ["v5e-4"], "fsdp=4", [])
    result = estimate(config, model_shape(config), candidate)
    assert result.refusal == "not compiled: the state alone needs 28.4 GiB per device"
    assert not result.fits
    assert not result.compiled
    assert result.peak > result.state


def test_mesh_that_does_not_divide_the_model_is_an_error(directory):
    pytest.importorskip("libtpu")
    config = setting(directory)
    (candidate,) = make_candidates(config, ["v5e-4"], "tensor=4", [])
    with pytest.raises(SdftError, match="is not divisible by the 4 parts of mesh axis tensor"):
        estimate(config, model_shape(config), candidate)


def test_refusal_of_the_compiler_has_the_memory_that_is_needed():
    pytest.importorskip("libtpu")
    counted = made_estimate(12, temporaries={})
    (device,) = make_candidates(load_config(None), ["v5e-1"], "fsdp=1", [])[0].devices
    x = jax.ShapeDtypeStruct(
        (600_000, 16_384), "bfloat16", sharding=jax.sharding.SingleDeviceSharding(device)
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x + 1).lower(x).compile()  # 18.3 GiB, twice
    refused = _refused(counted, str(error.value))
    # libtpu 0.0.23 does not count the argument
    arrays = 2 if "36.6" in refused.refusal else 1
    size = {1: "18.3 GiB per device, 2.3 GiB", 2: "36.6 GiB per device, 20.6 GiB"}[arrays]
    assert refused.refusal == f"needs {size} too much"
    assert refused.temporaries == {"all but the state": refused.peak - 8 * GIB}
    assert refused.peak == pytest.approx(arrays * 600_000 * 16_384 * 2, rel=0.001)
    other = _refused(counted, "INTERNAL: a bug\nwith details")
    assert (other.refusal, other.peak) == ("refused by the compiler: INTERNAL: a bug", 8 * GIB)


def test_largest_part_of_the_memory():
    assert made_estimate(14).dominant == "optimizer 4.0 GiB"
    assert made_estimate(14, temporaries={"divergence": 5 * GIB}).dominant == "divergence 5.0 GiB"


def test_phases_are_those_of_the_named_scopes():
    scopes = {
        "jit(precise)/rollout/prefill/while/body/dot": "prefill",
        "jit(precise)/rollout/decode/while/body/while/body/dot": "decode",
        "jit(precise)/rollout/convert_element_type": "decode",
        "jit(precise)/learn/jvp(teacher)/while/body/dot": "teacher",
        "jit(precise)/learn/jvp(student)/while/body/dot": "student",
        "jit(precise)/learn/transpose(jvp(student))/while/body/dot": "backward",
        "jit(precise)/learn/jvp()/shard_map/while": "divergence",
        "jit(precise)/optimizer/mul": "optimizer",
        "jit(precise)/optimizer/ema/mul": "optimizer",
        "": "other",
    }
    assert {scope: phase_of(scope) for scope in scopes} == scopes


PATTERNS = pattern_examples(estimate_module)


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_matches_the_example_below_it(name):
    report = []
    results = doctest.DocTestRunner().run(PATTERNS[name], out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def test_temporaries_at_the_peak_have_phases_and_exclude_the_state():
    text = """
  %copy.1 = f32[8] copy(%a), metadata={op_name="jit(f)/rollout/decode/copy"}
  %dot.2 = f32[8] dot(%a, %b), metadata={op_name="jit(f)/learn/jvp(student)/dot"}
  ROOT %add.3 = f32[8] add(%a, %b), metadata={op_name="jit(f)/optimizer/add"}
"""
    live_ranges = """
  Live ranges at 12 (peak):
    copy.1{}: 400 bytes (cumulative: 400 bytes)
    dot.2{0}: 300 bytes (cumulative: 700 bytes)
    param.9{}: 5000 bytes (cumulative: 5700 bytes)
    add.3{}: 5000 bytes (cumulative: 10700 bytes)

  Stack trace breakdown for peak usage: 10 700 bytes
    copy.7{}: 99 bytes
"""
    buffers = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 x @0> (size=512,offset=0): s32[]
allocation 1: size 5000, parameter 15, shape |f32[8]| at ShapeIndex {}, maybe-live-out:
 value: <77 param.9 @0> (size=5000,offset=0): f32[8]
 value: <78 add.3 @0> (size=5000,offset=0): f32[8]
allocation 2: size 700:
 value: <79 copy.1 @0> (size=400,offset=0): f32[8]
"""
    program = _Program(text, live_ranges, buffers, peak=6000.0, compile_seconds=0.0)
    assert _temporaries(program, 1000) == {"decode": 400, "student": 300, "inside loops": 300}
