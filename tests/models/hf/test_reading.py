"""Reading of checkpoints: sharding, dtypes, and errors for invalid checkpoints."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from make_fixtures import CASES, DIRECTORY
from sdft_jax.errors import SdftError
from sdft_jax.models import distance, load_model, open_checkpoint, read_architecture, save_pretrained
from sdft_jax.models.hf.reading import weights_digest
from sdft_jax.sharding import Rules, Sharding, make_mesh, single_device
from sdft_jax.sharding.rules import without_axes


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(DIRECTORY / "qwen2_tied", tmp_path / "model")


def rewrite(checkpoint, change):
    """Apply `change` to the tensors of a checkpoint."""
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_layers_are_stacked_and_matrices_transposed():
    model, params = load_model(DIRECTORY / "qwen3")
    stored = load_file(DIRECTORY / "qwen3" / "model.safetensors")
    q = stored["model.layers.2.self_attn.q_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["layers"]["q"][2], q.T.reshape(24, 4, 16))
    np.testing.assert_array_equal(params["head"], stored["lm_head.weight"].astype(np.float32))
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, model.abstract_params())
    assert model.source == str(DIRECTORY / "qwen3")


def test_dtypes_of_parameters_and_activations():
    model, params = load_model(DIRECTORY / "qwen3", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert model.compute_dtype == "bfloat16"
    model, params = load_model(DIRECTORY / "qwen3", compute_dtype=jnp.bfloat16, remat="full")
    assert params["norm"].dtype == jnp.float32
    assert (model.compute_dtype, model.remat) == ("bfloat16", "full")


def test_the_error_of_an_unknown_format():
    with pytest.raises(SdftError, match="quantize='int4': use one of int8, nf4, or None"):
        load_model(DIRECTORY / "qwen3", quantize="int4")


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_every_device_has_its_slice(axes):
    case, rules = "olmo2", Rules(vocab=None)  # no mesh axis divides 61 tokens
    single, expected = load_model(DIRECTORY / case)
    assert single.sharding == single_device()
    model, params = load_model(DIRECTORY / case, sharding=Sharding(make_mesh(*axes), rules))
    assert_equal(expected, params)
    q = params["layers"]["q"]
    assert q.addressable_shards[0].data.shape == (4, 24 // axes[1], 4 // axes[2], 6)
    assert len(q.sharding.device_set) == 8
    assert model.sharding.rules == without_axes(rules, {"expert"})


def test_the_error_of_a_mesh_that_does_not_divide_a_parameter():
    with pytest.raises(SdftError, match=r"embed: axis 'vocab' of size 61 is not divisible by the 2 parts"):
        load_model(DIRECTORY / "qwen3", sharding=Sharding(make_mesh(1, 1, 2)))
    with pytest.raises(SdftError, match=r"layers\.k: axis 'kv_heads' of size 2"):
        load_model(DIRECTORY / "qwen3", sharding=Sharding(make_mesh(2, 1, 4), Rules(vocab=None)))


def test_a_checkpoint_of_several_files(tmp_path):
    model, params = load_model(DIRECTORY / "qwen2")
    save_pretrained(model, params, None, tmp_path / "out", max_shard_size=12_000)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert_equal(load_model(tmp_path / "out")[1], params)
    (tmp_path / "out" / files[1]).unlink()
    with pytest.raises(SdftError, match=rf"{files[1]} is missing"):
        load_model(tmp_path / "out")


def test_distance_from_the_checkpoint():
    model, params = load_model(DIRECTORY / "qwen2")
    assert distance(model, params, DIRECTORY / "qwen2") == 0.0
    changed = jax.tree.map(lambda leaf: leaf + 0.25, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert distance(model, changed, DIRECTORY / "qwen2") == pytest.approx(0.25 * count**0.5, rel=1e-5)
    sharding = Sharding(make_mesh(2, 2, 2), Rules(vocab=None))
    model, params = load_model(DIRECTORY / "qwen2", sharding=sharding)
    params["layers"]["gate"] = params["layers"]["gate"].at[3, 0, 0].add(2.0)
    assert distance(model, params, DIRECTORY / "qwen2") == pytest.approx(2.0, rel=1e-5)


def test_the_error_of_a_missing_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        SdftError, match=r"1 of 50 tensors are missing, the first is model\.layers\.1\.mlp\.up_proj"
    ):
        load_model(checkpoint)


def test_the_error_of_an_unexpected_tensor(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({"score.weight": np.zeros((2, 24), np.float32)}))
    with pytest.raises(
        SdftError, match=r"1 tensors do not belong to a qwen2 model, the first is score\.weight"
    ):
        load_model(checkpoint)


def test_the_error_of_a_wrong_shape(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({"model.norm.weight": np.zeros(25, np.float32)}))
    with pytest.raises(
        SdftError, match=r"model\.norm\.weight has shape \[25\], but config\.json implies \[24\]"
    ):
        load_model(checkpoint)


def test_a_stored_head_must_equal_the_embedding_if_they_are_tied(checkpoint, tmp_path):
    rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    model, params = load_model(checkpoint)
    assert "head" not in params
    save_pretrained(model, params, None, tmp_path / "out")
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(SdftError, match=r"lm_head\.weight differs.*set tie_word_embeddings to false"):
        load_model(checkpoint)


def test_rotary_frequencies_of_old_checkpoints_are_ignored(checkpoint):
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    rewrite(checkpoint, lambda tensors: tensors.update(frequencies))
    load_model(checkpoint)


def test_the_error_of_truncated_weights(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        SdftError, match=r"model\.safetensors has .* bytes, but its header declares .*truncated"
    ):
        load_model(checkpoint)


def test_the_error_of_missing_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SdftError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SdftError, match=r"in another format \(pytorch_model\.bin\).*convert pickled"):
        load_model(checkpoint)


def test_the_error_of_an_invalid_index(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SdftError, match=r"index\.json (is not valid JSON|holds a JSON|has no weight_map)"):
        load_model(checkpoint)


def test_the_error_of_a_config_with_other_sizes(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps({**CASES["qwen2_tied"], "intermediate_size": 48}))
    with pytest.raises(
        SdftError, match=r"gate_proj\.weight has shape \[32, 24\], but config\.json implies \[48, 24\]"
    ):
        load_model(checkpoint)


def test_weights_and_an_index_of_other_files_are_refused(checkpoint):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(
        SdftError, match=r"has both model\.safetensors and .*, which lists other files: remove"
    ):
        load_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    index.write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    with pytest.raises(
        SdftError, match=r"lists '\.\./other/model\.safetensors', which is not a file beside it"
    ):
        load_model(checkpoint)


def test_index_that_lists_a_tensor_in_files_of_two_models_is_refused(checkpoint):
    """Files that the index does not list are not read."""
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    norm = {"model.norm.weight": tensors.pop("model.norm.weight")}
    save_file(tensors, checkpoint / "new-1.safetensors")
    save_file(norm, checkpoint / "new-2.safetensors")
    stale = {"model.norm.weight": norm["model.norm.weight"] + 1, "other.weight": norm["model.norm.weight"]}
    save_file(stale, checkpoint / "old-1.safetensors")
    index = {"weight_map": {name: "new-1.safetensors" for name in tensors}}
    index["weight_map"]["model.norm.weight"] = "new-2.safetensors"
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal(load_model(checkpoint)[1], load_model(DIRECTORY / "qwen2_tied")[1])
    index["weight_map"]["other.weight"] = "old-1.safetensors"
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    message = (
        r"model\.norm\.weight is both in new-2\.safetensors and in old-1\.safetensors, so that model\.saf"
    )
    with pytest.raises(SdftError, match=message):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (ml_dtypes.float8_e5m2, "F8_E5M2"),
        (np.uint8, "U8"),
        (np.int8, "I8"),
    ],
)
def test_quantized_weights_without_a_quantization_config_are_refused_by_name(checkpoint, dtype, code):
    """Their numbers mean nothing without scales: float8 weights of the right shape would load."""
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(checkpoint, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))
    message = rf"model\.safetensors: {name} has dtype {code}, that of quantized weights, .*: use the original"
    with pytest.raises(SdftError, match=message):
        load_model(checkpoint)


def test_packed_weights_are_refused_before_names_and_shapes_are_compared(checkpoint):
    """As AutoGPTQ wrote them: a quantize_config.json beside config.json, and other tensors."""
    names = ("qweight", "scales")

    def pack(tensors):
        tensors.pop("model.layers.0.mlp.up_proj.weight")
        packed = [np.zeros((3, 32), np.int32), np.ones((1, 32), np.float16)]
        tensors |= {f"model.layers.0.mlp.up_proj.{n}": x for n, x in zip(names, packed, strict=True)}

    rewrite(checkpoint, pack)
    with pytest.raises(SdftError, match=r"up_proj\.qweight has dtype I32, that of quantized weights"):
        load_model(checkpoint)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(checkpoint, value):
    name = "model.norm.weight"
    rewrite(checkpoint, lambda tensors: tensors.update({name: np.full_like(tensors[name], value)}))
    with pytest.raises(SdftError, match=r"1 parameters have values that are NaN or infinite, the first is "):
        load_model(checkpoint)


def test_shared_matrix_under_the_name_of_the_head(checkpoint):
    expected = load_model(checkpoint)[1]
    rewrite(checkpoint, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    params = load_model(checkpoint)[1]
    np.testing.assert_array_equal(params["embed"], expected["embed"])


def test_absurd_number_of_layers_takes_no_memory(checkpoint):
    for layers in (99_999, 10**9):
        config = {**CASES["qwen2_tied"], "num_hidden_layers": layers}
        (checkpoint / "config.json").write_text(json.dumps(config))
        with pytest.raises(SdftError, match=r"tensors are missing|num_hidden_layers is 1000000000, and not"):
            load_model(checkpoint)


@pytest.mark.parametrize("at", [0, -1])
def test_digest_of_weights_depends_on_values_and_names(checkpoint, at):
    def digest():
        return weights_digest(open_checkpoint(checkpoint, read_architecture(checkpoint)))

    def change(tensors):
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.embed_tokens.weight"].reshape(-1)[at] += 1

    before = digest()
    assert digest() == before
    rewrite(checkpoint, change)
    assert digest() != before
