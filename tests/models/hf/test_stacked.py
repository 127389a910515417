"""Experts in one tensor of a file: read as matrices, and written as the source has them."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

from make_fixtures import CASES, DIRECTORY
from sdft_jax.errors import SdftError
from sdft_jax.models import FAMILIES, Model, architecture_from_dict, load_model
from sdft_jax.models.hf.reading import open_checkpoint
from sdft_jax.models.hf.safetensors_io import read_header, write_file
from sdft_jax.models.hf.stacked import separate, stacked
from sdft_jax.models.hf.writing import rounding_note, save_pretrained
from sdft_jax.sharding import Rules, Sharding, make_mesh

QWEN = FAMILIES["qwen3_5_moe_text"].mixture
GPT_OSS = FAMILIES["gpt_oss"].mixture
GATE_UP, DOWN = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"


@pytest.fixture
def tensors(tmp_path):
    """A file with the stacks of two experts of width 3 and a matrix beside them, and its arrays."""
    arrays = {
        GATE_UP: np.arange(48, dtype=np.float32).reshape(2, 6, 4),
        DOWN: -np.arange(24, dtype=np.float32).reshape(2, 4, 3),
        "model.layers.1.mlp.gate.weight": np.ones((2, 4), np.float32),
    }
    file = tmp_path / "model.safetensors"
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    return read_header(file), arrays


def test_the_example_of_the_module(tensors):
    stored, arrays = tensors
    separated = separate(stored, QWEN)
    assert len(separated) == 7
    up = separated["model.layers.1.mlp.experts.1.up_proj.weight"]
    assert up.name == GATE_UP
    np.testing.assert_array_equal(up.map(), arrays[GATE_UP][1, 3:6])
    np.testing.assert_array_equal(
        separated["model.layers.1.mlp.experts.0.gate_proj.weight"].map(), arrays[GATE_UP][0, :3]
    )
    np.testing.assert_array_equal(
        separated["model.layers.1.mlp.experts.1.down_proj.weight"].map(), arrays[DOWN][1]
    )


def test_stacked_is_the_inverse_of_separate(tensors):
    stored, arrays = tensors
    for name in (GATE_UP, DOWN):
        parts = [part for part in separate(stored, QWEN).values() if part.name == name]
        for order in (parts, parts[::-1]):
            np.testing.assert_array_equal(
                stacked(stored[name], order, (x.map() for x in order)), arrays[name]
            )


def test_other_shapes_are_left_for_the_comparison_with_the_config(tensors):
    stored, _ = tensors
    flat = dataclasses.replace(stored[GATE_UP], shape=(12, 4))
    odd = dataclasses.replace(stored[GATE_UP], shape=(2, 5, 4))
    assert separate({GATE_UP: flat}, QWEN) == {GATE_UP: flat}
    assert separate({GATE_UP: odd}, QWEN) == {GATE_UP: odd}


BLOCKS, SCALES = GATE_UP + "_blocks", GATE_UP + "_scales"


def coded(count, outputs, inputs, seed=0):
    """Return random codes and scales of matrices."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, outputs, inputs // 32, 16)).astype(np.uint8)
    return blocks, rng.integers(120, 125, (count, outputs, inputs // 32)).astype(np.uint8)


def test_interleaved_stacks_have_inputs_before_outputs_and_alternate(tmp_path):
    arrays = {GATE_UP: np.arange(40.0).reshape(2, 5, 4), GATE_UP + "_bias": np.arange(8.0).reshape(2, 4)}
    file = tmp_path / "model.safetensors"
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    separated = separate(read_header(file), GPT_OSS)
    up = "model.layers.1.mlp.experts.1.up_proj"
    np.testing.assert_array_equal(separated[f"{up}.weight"].map(), arrays[GATE_UP][1, :, 1::2].T)
    np.testing.assert_array_equal(separated[f"{up}.bias"].map(), [5, 7])


def test_a_block_of_mxfp4(tmp_path):
    """Codes 1 and 15 are 0.5 and -6; the scale 129 is a factor of 4."""
    blocks, scales = np.zeros((1, 2, 1, 16), np.uint8), np.full((1, 2, 1), 129, np.uint8)
    blocks[0, 1, 0, 2] = 15 * 16 + 1  # of inputs 4 and 5 of the first output of up
    arrays, file = {BLOCKS: blocks, SCALES: scales}, tmp_path / "model.safetensors"
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    separated = separate(read_header(file), GPT_OSS)
    gate, up = (separated[f"model.layers.1.mlp.experts.0.{kind}_proj.weight"] for kind in ("gate", "up"))
    assert up.code == "BF16"
    expected = np.zeros((1, 32))
    expected[0, 4:6] = 2, -24
    np.testing.assert_array_equal(up.map().astype(float), expected)
    np.testing.assert_array_equal(gate.map().astype(float), 0)
    assert separate({BLOCKS: read_header(file)[BLOCKS]}, GPT_OSS).keys() == {BLOCKS}  # without scales


def test_a_part_of_mxfp4_is_that_of_the_whole_and_samples_are_codes(tmp_path):
    blocks, scales = coded(2, 6, 96)
    arrays, file = {BLOCKS: blocks, SCALES: scales}, tmp_path / "model.safetensors"
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    up = separate(read_header(file), GPT_OSS)["model.layers.1.mlp.experts.1.up_proj.weight"]
    whole = up.map()
    assert whole.shape == (3, 96)
    for outputs, inputs in ((slice(1, 3), slice(40, 70)), (slice(None), slice(0, 32)), (slice(0), slice(5))):
        np.testing.assert_array_equal(up.part((outputs, inputs)), whole[outputs, inputs])
    first, *_, last = up.samples(20)
    np.testing.assert_array_equal(first, blocks[1, 1].reshape(-1)[:20])
    np.testing.assert_array_equal(last, scales[1, 5])


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="requires torch")
def test_checkpoint_in_mxfp4_is_read_and_exported_as_transformers_dequantizes_it(tmp_path):
    import torch
    from safetensors.numpy import load_file, save_file
    from transformers import GptOssForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    raw = CASES["gpt_oss"] | {"hidden_size": 32, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    model = Model(architecture_from_dict(raw))
    plain, source = tmp_path / "plain", tmp_path / "coded"
    save_pretrained(model, model.init(jax.random.key(0)), None, plain, dtype="float32")
    shutil.copytree(plain, source)
    tensors, expected = load_file(source / "model.safetensors"), {}
    for name, outputs in (("gate_up_proj", 64), ("down_proj", 32)):
        stack = f"model.layers.0.mlp.experts.{name}"
        blocks, scales = coded(8, outputs, 32, seed=outputs)
        tensors |= {f"{stack}_blocks": blocks, f"{stack}_scales": scales}
        expected[stack] = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
        assert tensors.pop(stack).shape == expected[stack].shape
    save_file(tensors, source / "model.safetensors")
    config = raw | {"quantization_config": {"quant_method": "mxfp4"}}
    (source / "config.json").write_text(json.dumps(config))

    model, params = load_model(source)
    for dtype, name in ((None, "bfloat16"), ("float32", "float32")):
        note = rounding_note(model, params, dtype)
        written = f"are written without quantization, in {name}."
        assert note == [f"the experts, which the source has in MXFP4, {written}"]
    save_pretrained(model, params, None, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    back = GptOssForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(back[name], tensor.to(back[name].dtype))
    assert read_header(tmp_path / "out" / "model.safetensors")[stack].code == "BF16"


def test_mxfp4_without_its_scales_is_refused(tmp_path):
    shutil.copytree(DIRECTORY / "gpt_oss", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    stored = read_header(file)
    arrays = {name: tensor.map().copy() for name, tensor in stored.items()}
    del arrays["model.layers.0.mlp.experts.gate_up_proj"]
    arrays["model.layers.0.mlp.experts.gate_up_proj_blocks"], _ = coded(8, 64, 32)
    file.unlink()
    write_file(file, {name: (x.dtype, x.shape) for name, x in arrays.items()}, arrays.values())
    with pytest.raises(
        SdftError, match=r"gate_up_proj_blocks is in MXFP4, and its blocks or scales are missing"
    ):
        load_model(tmp_path)


def test_wrong_number_of_stacked_experts_is_refused():
    raw = CASES["gemma4_moe"] | {"num_experts": 9}
    with pytest.raises(
        SdftError, match=r"tensors are missing, the first is model\.layers\.0\.experts\.8\.gate"
    ):
        open_checkpoint(DIRECTORY / "gemma4_moe", architecture_from_dict(raw))


def test_model_without_a_source_has_the_layout_that_transformers_reads(tmp_path):
    model = Model(architecture_from_dict(CASES["gemma4_moe"]))
    params = model.init(jax.random.key(0))
    save_pretrained(model, params, None, tmp_path / "out", dtype="float32")
    names = read_header(tmp_path / "out" / "model.safetensors").keys()
    assert names == read_header(DIRECTORY / "gemma4_moe" / "model.safetensors").keys()
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "out")[1], params)


@pytest.mark.parametrize("case", ["gpt_oss", "qwen35_moe"])
def test_experts_on_different_devices_are_read_and_written_like_those_on_one(case, tmp_path):
    sharding = Sharding(make_mesh(1, 2, 2, 2), Rules(vocab=None))
    model, params = load_model(DIRECTORY / case, sharding=sharding)
    jax.tree.map(np.testing.assert_array_equal, params, load_model(DIRECTORY / case)[1])
    up = params["layers"]["experts_up"]
    assert up.addressable_shards[0].data.shape == (len(up), 4, up.shape[2] // 2, up.shape[3] // 2)
    save_pretrained(model, params, None, tmp_path / "out", dtype="float32")
    written, source = (read_header(d / "model.safetensors") for d in (tmp_path / "out", DIRECTORY / case))
    for name, tensor in source.items():
        np.testing.assert_array_equal(written[name].map(), tensor.map())
