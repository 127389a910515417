"""Architectures from config.json files of transformers 4 and 5, and errors for unsupported ones."""

import copy
import dataclasses
import functools
import json

import pytest

from make_fixtures import CASES, one_of_each_family
from sdft_jax.errors import SdftError
from sdft_jax.models import architecture_from_dict, read_architecture
from sdft_jax.models.families import Heads
from sdft_jax.models.rope import NO_ROPE, Rope

# The keys of the published files (Hugging Face Hub, transformers 4) that affect the architecture.
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
GEMMA_4_31B = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "image_token_id": 258880,
    "model_type": "gemma4",
    "text_config": {
        "attention_bias": False,
        "attention_k_eq_v": True,
        "enable_moe_block": False,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 5376,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 21504,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 10,
        "max_position_embeddings": 262144,
        "model_type": "gemma4_text",
        "num_attention_heads": 32,
        "num_global_key_value_heads": 4,
        "num_hidden_layers": 60,
        "num_key_value_heads": 16,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": CASES["gemma4"]["rope_parameters"],
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
        "use_double_wide_mlp": False,
        "vocab_size": 262144,
    },
    "tie_word_embeddings": True,
}
QWEN_25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def test_gemma_3():
    architecture = architecture_from_dict(GEMMA_3_1B)
    assert [kind.window for kind in architecture.kinds] == [None, 512]
    assert [kind.rope.rope_theta for kind in architecture.kinds] == [1e6, 1e4]
    assert architecture.kind_of_layer[:7] == (1, 1, 1, 1, 1, 0, 1)
    assert architecture.tie_word_embeddings
    assert architecture.query_scale == 1 / 16
    assert architecture.num_attention_heads * architecture.head_dim != architecture.hidden_size


def test_gemma_3_in_a_wrapper():
    architecture = architecture_from_dict(GEMMA_3_4B)
    assert architecture.name == "Gemma3ForConditionalGeneration"
    assert architecture.family.architecture == "Gemma3ForCausalLM"
    assert architecture.vocab_size == 262208
    assert (architecture.num_attention_heads, architecture.num_key_value_heads) == (8, 4)
    assert [(kind.window, kind.rope.factor) for kind in architecture.kinds] == [(None, 8.0), (1024, 1.0)]
    assert architecture.tie_word_embeddings
    assert json.loads(architecture.source_json) == GEMMA_3_4B


def test_gemma_4():
    architecture = architecture_from_dict(GEMMA_4_31B)
    full, sliding = architecture.kinds
    assert (full.window, sliding.window) == (None, 1024)
    assert (full.heads, architecture.heads_of(sliding)) == (Heads(4, 512, True), Heads(16, 256))
    assert (full.rope.rope_type, full.rope.partial_rotary_factor) == ("proportional", 0.25)
    assert (architecture.period(range(60)), architecture.query_scale, architecture.softcap) == (6, 1.0, 30.0)
    assert architecture.tie_word_embeddings
    shapes = {tensor.name: tensor.shape(architecture.sizes) for tensor in architecture.tensors_of(full)}
    assert (shapes["full_q"], shapes["full_k"], shapes["full_k_norm"]) == (
        (5376, 32, 512),
        (5376, 4, 512),
        (512,),
    )
    assert shapes.keys().isdisjoint({"q", "k", "v", "full_v", "q_norm"})


def test_gemma_4_with_shared_keys_and_values():
    """E2B has seven periods of five layers; the last four share the keys and values of the third."""
    types = [*["sliding_attention"] * 4, "full_attention"] * 7
    shared = {"num_kv_shared_layers": 20, "use_double_wide_mlp": True, "attention_k_eq_v": False}
    text = GEMMA_4_31B["text_config"] | {
        "num_hidden_layers": 35,
        "layer_types": types,
        "hidden_size_per_layer_input": 256,
        **shared,
    }
    architecture = architecture_from_dict(GEMMA_4_31B | {"text_config": text})
    assert architecture.parts == (range(15), range(15, 35))
    assert [architecture.period(part) for part in architecture.parts] == [5, 5]
    assert [(kind.window, kind.shares_keys, kind.wide) for kind in architecture.kinds] == [
        (None, False, False),
        (None, True, True),
        (1024, False, False),
        (1024, True, True),
    ]
    assert [architecture.owner_of(kind) for kind in range(4)] == [0, 0, 2, 2]
    shapes = {
        name: (own.shape(architecture.sizes), len(architecture.layers_with(own)))
        for name, own in {tensor.name: tensor for tensor in architecture.layer_tensors}.items()
    }
    assert shapes["full_k"] == ((5376, 16, 512), 3)
    assert (shapes["q_norm"], shapes["sharing_q_norm"]) == (((256,), 12), ((256,), 16))
    assert shapes["k_norm"] == ((256,), 12)
    assert (shapes["gate"], shapes["sharing_gate"]) == (((5376, 21504), 15), ((5376, 43008), 20))
    assert (shapes["layer_input_gate"], shapes["sharing_layer_input_gate"]) == (
        ((5376, 256), 15),
        ((5376, 256), 20),
    )
    assert shapes.keys().isdisjoint({"sharing_k", "sharing_full_v", "sharing_k_norm", "sharing_full_k_norm"})
    outer = {tensor.name: tensor.stored_shape(architecture.sizes) for tensor in architecture.outer_tensors}
    assert outer["layer_embed"] == (262_144, 35 * 256)
    assert outer["layer_embed_projection"] == (35 * 256, 5376)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_moe_block": True}, "num_experts is missing: a model with experts requires it"),
        ({"hidden_size_per_layer_input": -1}, "hidden_size_per_layer_input is -1, and not a number from 0"),
        (
            {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_143},
            "vocab_size_per_layer_input is 262143, and vocab_size is 262144: models in which they differ",
        ),
        ({"use_double_wide_mlp": "false"}, "use_double_wide_mlp is 'false', and neither true nor false"),
        ({"num_kv_shared_layers": 60}, "num_kv_shared_layers is 60, and not a number from 0 to 59, so that"),
        (
            {"num_kv_shared_layers": 55},
            "no layer before the last 55 has the type full_attention, whose keys and values they would share",
        ),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported for gemma4_text models"),
        ({"final_logit_softcapping": 0.0}, r"final_logit_softcapping is 0\.0, and not a positive number"),
        ({"layer_types": ["sliding_attention"] * 60}, "last entry of layer_types is sliding_attention"),
        ({"num_global_key_value_heads": 5}, "32 is not a multiple of the number of key-value heads in full"),
        ({"global_head_dim": 0}, "global_head_dim is 0, and not a number"),
        ({"per_layer_config": {"4": {"head_dim": 512}}}, "per_layer_config is not supported unless"),
        ({"per_layer_config": {"5": {"head_dim": 512}}}, "per_layer_config is not supported unless"),
        ({"rope_parameters": {"full_attention": {}}}, "the key '.*' is missing"),
    ],
)
def test_other_models_of_gemma_4_are_refused(change, message):
    with pytest.raises(SdftError, match=message):
        architecture_from_dict(GEMMA_4_31B | {"text_config": GEMMA_4_31B["text_config"] | change})


def test_qwen_25():
    architecture = architecture_from_dict(QWEN_25_7B)
    assert len(architecture.kinds) == 1
    assert architecture.kinds[0].window is None
    assert architecture.kind_of_layer == (0,) * 28
    assert architecture.head_dim == 128
    assert architecture.qkv_bias
    assert not architecture.output_bias


def test_smollm_3():
    architecture = architecture_from_dict(CASES["smollm3"])
    assert [(kind.window, kind.rope.rope_theta) for kind in architecture.kinds] == [(None, 5e6), (None, 1.0)]
    assert architecture.kind_of_layer == (0, 1, 0, 1)
    sliding = architecture_from_dict(CASES["smollm3_sliding"])
    assert [(kind.window, kind.rope == NO_ROPE) for kind in sliding.kinds] == [(None, False), (6, True)]
    assert sliding.kind_of_layer == (0, 0, 1, 0)
    with pytest.raises(SdftError, match="no_rope_layers has 2 entries, but num_hidden_layers is 4"):
        architecture_from_dict({**CASES["smollm3"], "no_rope_layers": [1, 0]})


def test_phi_3():
    old = CASES["phi4_mini"]
    (kind,) = architecture_from_dict(old).kinds
    assert (kind.window, kind.rope.rope_type, kind.rope.factor) == (262144, "longrope", 8.0)
    assert kind.rope.attention_factor == pytest.approx(2**0.5)  # sqrt(1 + log(64 / 8) / log(8))
    for spelling in ({"type": "su"}, {"type": "yarn"}, {"rope_type": "longrope"}):
        scaling = {key: old["rope_scaling"][key] for key in ("long_factor", "short_factor")} | spelling
        assert architecture_from_dict({**old, "rope_scaling": scaling}).kinds == (kind,)
    assert architecture_from_dict(CASES["phi3"]).kinds[0].window == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear' is not supported for phi3"),
        (
            {"partial_rotary_factor": 0.34},
            "short_factor of the rope parameters has 2 numbers, and heads have 1 rotated pairs",
        ),
        (
            {"rope_scaling": CASES["phi4_mini"]["rope_scaling"] | {"short_factor": [1.0, 1.0, 1.0]}},
            "short_factor of the rope parameters has 3 numbers, and heads have 2 rotated pairs",
        ),
        ({"attention_bias": True}, "attention_bias is not supported for phi3"),
        (
            {"rope_scaling": CASES["phi4_mini"]["rope_scaling"] | {"original_max_position_embeddings": 16}},
            "is 8 beside the rope parameters and 16 within them",
        ),
    ],
)
def test_errors_of_phi_3(change, message):
    with pytest.raises(SdftError, match=message):
        architecture_from_dict({**CASES["phi4_mini"], **change})


def test_transformers_5_keys_give_the_same_layers():
    old = CASES["olmo3"]
    scaling = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    plain = {"rope_type": "default", "rope_theta": old["rope_theta"]}
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {"full_attention": scaling, "sliding_attention": plain}
    assert architecture_from_dict(new).kinds == architecture_from_dict(old).kinds

    old = CASES["llama31"]
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert architecture_from_dict(new).kinds == architecture_from_dict(old).kinds


def test_transformers_5_writes_the_same_architecture():
    """Of every family: it moves rope_theta and rope_scaling into rope_parameters, and renames torch_dtype."""
    from transformers import AutoConfig

    for case, old in CASES.items():
        written = json.loads(AutoConfig.for_model(**copy.deepcopy(old)).to_json_string())
        assert not {"rope_theta", "rope_scaling", "torch_dtype"} & written.keys(), case
        new = architecture_from_dict({"architectures": old["architectures"], **written})
        expected = architecture_from_dict(old)
        assert dataclasses.replace(new, source_json=expected.source_json) == expected, case


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8, e4m3"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
            "bitsandbytes, 4 bits",
        ),
        ({"load_in_8bit": True}, "8 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, "mxfp4"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            "compressed-tensors, float-quan",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, NVFP4"),
        ({"group_size": 128}, "format not named"),
        ("int4", "format not named"),
    ],
)
def test_quantized_checkpoints_are_refused_by_name(settings, named):
    message = (
        rf"^quantization_config is not supported \(the weights are quantized: {named}.*\): use the original"
    )
    with pytest.raises(SdftError, match=message):
        architecture_from_dict({**QWEN_25_7B, "quantization_config": settings})
    for absent in (None, {}):
        assert architecture_from_dict({**QWEN_25_7B, "quantization_config": absent})


def test_missing_keys_have_the_defaults_of_the_transformers_class():
    sizes = {
        key: GEMMA_3_1B[key] for key in GEMMA_3_1B if key.startswith(("hidden_s", "inter", "num", "vocab"))
    }
    architecture = architecture_from_dict({"model_type": "gemma3_text", **sizes})
    assert architecture.kinds[1].window == 4096
    assert architecture.kinds[1].rope == Rope(1e4)
    assert architecture.kinds[0].rope == Rope(1e6)
    assert architecture.rms_norm_eps == 1e-6


@pytest.mark.parametrize("case", one_of_each_family())
def test_every_missing_key_has_the_default_of_transformers(case):
    """Except keys without which either library refuses the configuration."""
    from transformers import AutoConfig

    config, compared = CASES[case], 0
    places = [(key,) for key in config]
    places += [(key, inner) for key, value in config.items() if isinstance(value, dict) for inner in value]
    for *outer, key in places:
        if key in ("model_type", "architectures"):
            continue
        without = copy.deepcopy(config)
        functools.reduce(dict.__getitem__, outer, without).pop(key)
        try:
            own = architecture_from_dict(without)
            written = AutoConfig.for_model(**copy.deepcopy(without)).to_dict()
            theirs = architecture_from_dict({"architectures": config["architectures"], **written})
        except (SdftError, KeyError):
            continue
        assert dataclasses.replace(theirs, source_json=own.source_json) == own, (*outer, key)
        compared += 1
    assert compared >= 10


def test_layer_types_override_the_pattern_of_the_family():
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    architecture = architecture_from_dict({**CASES["qwen2_sliding"], "layer_types": types})
    assert architecture.kind_of_layer == (0, 1, 0, 1)


def test_architectures_are_hashable_and_compared_by_value():
    reordered = dict(reversed(QWEN_25_7B.items()))
    assert hash(architecture_from_dict(QWEN_25_7B)) == hash(architecture_from_dict(reordered))
    assert architecture_from_dict(QWEN_25_7B) != architecture_from_dict({**QWEN_25_7B, "rope_theta": 1e4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
            r"MixtralForCausalLM.*supported: Qwen2",
        ),
        (
            {"architectures": ["Qwen2ForSequenceClassification"]},
            "Qwen2ForSequenceClassification is not supported",
        ),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported; supported: silu"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            "'longrope' requires the key 'short_fact",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'.*default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "requires the key 'low_freq_factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"layer_types": ["linear_attention"] * 28}, "layer type 'linear_attention'"),
        ({"layer_types": ["full_attention"] * 3}, "3 entries, but num_hidden_layers is 28"),
        ({"layer_types": ["sliding_attention"] * 28, "sliding_window": None}, "sliding_window is not set"),
        ({"num_key_value_heads": 5}, "28 is not a multiple of num_key_value_heads 5"),
    ],
)
def test_errors_name_the_unsupported_or_inconsistent_key(change, message):
    with pytest.raises(SdftError, match=message):
        architecture_from_dict({**QWEN_25_7B, **change})


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_original_length_beside_the_rope_parameters(key, rope):
    """transformers 5 reads it there; transformers 4 and this library read it within them."""
    config = {**QWEN_25_7B, key: rope, "original_max_position_embeddings": 4096}
    with pytest.raises(SdftError, match="is 4096 beside the rope parameters and None within them"):
        architecture_from_dict(config)
    both = {**config, key: rope | {"original_max_position_embeddings": 4096}}
    assert architecture_from_dict(both).kinds[0].rope.original_max_position_embeddings == 4096


def test_original_length_beside_the_rope_parameters_of_each_type_of_layer():
    ropes = {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}
    config = {**GEMMA_3_1B, "rope_parameters": ropes, "original_max_position_embeddings": 4096}
    with pytest.raises(SdftError, match="is 4096 beside the rope parameters and None within them"):
        architecture_from_dict(config)


def test_base_frequency_beside_the_rope_parameters():
    rope = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(SdftError, match=r"rope_theta is 1000000\.0 beside the rope parameters and 10000\.0"):
        architecture_from_dict({**QWEN_25_7B, "rope_parameters": rope})
    assert architecture_from_dict({**QWEN_25_7B, "rope_theta": 1e4, "rope_parameters": rope})


def test_the_error_names_a_missing_key():
    with pytest.raises(SdftError, match="'hidden_size' is missing"):
        architecture_from_dict({key: value for key, value in QWEN_25_7B.items() if key != "hidden_size"})


def test_errors_of_directories_without_a_valid_config(tmp_path):
    with pytest.raises(SdftError, match="no such directory"):
        read_architecture(tmp_path / "absent")
    with pytest.raises(SdftError, match=r"config\.json is missing: give the directory of a Hugging Face"):
        read_architecture(tmp_path)
    (tmp_path / "q4.gguf").touch()
    with pytest.raises(SdftError, match=r"config\.json is missing: .* that q4\.gguf was made from"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SdftError, match="not valid JSON"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**QWEN_25_7B, "hidden_act": "relu"}))
    with pytest.raises(SdftError, match=r"config\.json: activation 'relu'"):
        read_architecture(tmp_path)


def test_layers_with_experts_are_every_nth_one_that_is_not_listed_as_dense():
    mixed = architecture_from_dict(CASES["qwen3_moe_mixed"])
    assert mixed.layers_with_experts == (1,)
    assert mixed.feed_forward_widths == (32, 12)
    assert [tensor.name for tensor in mixed.tensors_of(mixed.kinds[1]) if "expert" in tensor.name] == [
        "experts_gate",
        "experts_up",
        "experts_down",
    ]
    every = architecture_from_dict(CASES["qwen3_moe"])
    assert every.layers_with_experts == (0, 1, 2, 3)
    assert every.feed_forward_widths == (12,)
    with pytest.raises(SdftError, match=r"num_experts_per_tok 9 is above num_experts 8: correct one of them"):
        architecture_from_dict({**CASES["qwen3_moe"], "num_experts_per_tok": 9})
