"""Make tests/fixtures/models: small random checkpoints, and their logits computed by transformers.

    python tests/make_fixtures.py [CASE...]

requires torch and transformers; the tests require neither. Each config.json has the keys of the published
checkpoints of its family: most have those of transformers 4, some those of transformers 5.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

DIRECTORY = Path(__file__).parent / "fixtures" / "models"
LENGTH = 40

_BASE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_QWEN2 = {
    **_BASE,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 64,
    "max_window_layers": 4,
    "torch_dtype": "bfloat16",
}
_QWEN3 = {
    **_BASE,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 16,
    "attention_bias": False,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 4,
}
_QWEN3_MOE = {
    **_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}
_LLAMA = {
    **_BASE,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MISTRAL = {
    **{key: value for key, value in _BASE.items() if key != "rms_norm_eps"},
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": 6,
    "torch_dtype": "bfloat16",
}
_MINISTRAL3 = {
    **_BASE,
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "original_max_position_embeddings": 12,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "dtype": "bfloat16",
}
_SMOLLM3 = {
    **_BASE,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "attention_bias": False,
    "layer_types": ["full_attention"] * 4,
    "max_window_layers": 28,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 0, 1, 0],
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
_PHI3 = {
    **_BASE,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_key_value_heads": 4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "original_max_position_embeddings": 64,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 6,
    "torch_dtype": "bfloat16",
}
_OLMO3 = {
    **_BASE,
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
}
_GEMMA3 = {
    **{key: value for key, value in _BASE.items() if key not in ("hidden_act", "tie_word_embeddings")},
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
}
_GPT_OSS = {
    **{key: value for key, value in _BASE.items() if key != "rms_norm_eps"},
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 3,
    "head_dim": 8,
    "initial_context_length": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_experts_per_tok": 3,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 6,
    "swiglu_limit": 1.5,
    "torch_dtype": "bfloat16",
}
_QWEN35 = {
    **_BASE,
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 6,
    "full_attention_interval": 4,
    "layer_types": [*["linear_attention"] * 3, "full_attention", *["linear_attention"] * 2],
    "attention_bias": False,
    "attn_output_gate": True,
    "head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 0],
    },
    "dtype": "bfloat16",
}
_QWEN35_MOE = {
    **{key: value for key, value in _QWEN35.items() if key != "intermediate_size"},
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "full_attention_interval": 2,
    "moe_intermediate_size": 12,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 32,
}
_QWEN35_VISION = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "image_token_id": 57,
    "video_token_id": 58,
    "vision_start_token_id": 59,
    "vision_end_token_id": 60,
    "text_config": {key: value for key, value in _QWEN35.items() if key != "architectures"},
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "vision_config": {
        "model_type": "qwen3_5_vision",
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "num_position_embeddings": 4,
        "out_hidden_size": 24,
        "patch_size": 4,
        "spatial_merge_size": 2,
    },
}
_GEMMA4 = {
    **{key: value for key, value in _BASE.items() if key not in ("hidden_act", "tie_word_embeddings")},
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "num_hidden_layers": 5,
    "layer_types": [*["full_attention", "sliding_attention"] * 2, "full_attention"],
    "attention_bias": False,
    "attention_k_eq_v": True,
    "enable_moe_block": False,
    "final_logit_softcapping": 8.0,
    "global_head_dim": 16,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "num_global_key_value_heads": 1,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 6,
    "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False,
    "dtype": "bfloat16",
}
_GEMMA4_TEXT = {key: value for key, value in _GEMMA4.items() if key not in ("architectures", "layer_types")}
_GEMMA4_UNIFIED = {
    key: value
    for key, value in _GEMMA4_TEXT.items()
    if key not in ("hidden_size_per_layer_input", "enable_moe_block")
}
_GEMMA4_TOKENS = {
    "image_token_id": 0,
    "video_token_id": 1,
    "audio_token_id": 2,
    "boi_token_id": 57,
    "eoi_token_id": 58,
    "boa_token_id": 59,
    "eoa_token_index": 60,
    "dtype": "bfloat16",
}

_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_GEMMA3_VISION = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 57,
    "eoi_token_index": 58,
    "image_token_index": 2,
    "eos_token_id": [2, 60],
    "mm_tokens_per_image": 1,
    "text_config": {
        key: value
        for key, value in _GEMMA3.items()
        if key not in ("architectures", "num_attention_heads", "num_key_value_heads")
    }
    | {
        "head_dim": 4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 3,
    },
    "torch_dtype": "bfloat16",
    "vision_config": _SIGLIP,
}

_MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "image_token_index": 2,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "vision_feature_layer": -1,
}

CASES = {
    "qwen2": _QWEN2,
    "qwen2_tied": {**_QWEN2, "tie_word_embeddings": True},
    "qwen2_yarn": {
        **_QWEN2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "qwen2_sliding": {**_QWEN2, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {**_QWEN3, "rope_theta": 5000000},
    "qwen3_tied": {
        **_QWEN3,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
        "dtype": "bfloat16",
    },
    "qwen3_yarn": {
        **_QWEN3,
        "rope_theta": 1000000,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "llama3": {**_LLAMA, "rope_scaling": None},
    "llama31": {**_LLAMA, "rope_scaling": _LLAMA3_SCALING},
    "llama32_tied": {
        **_LLAMA,
        "tie_word_embeddings": True,
        "head_dim": 12,
        "rope_scaling": {**_LLAMA3_SCALING, "factor": 32.0},
    },
    "olmo2": {
        **_BASE,
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "num_key_value_heads": 4,
        "rope_theta": 500000,
    },
    "olmo3": {
        **_OLMO3,
        "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 16,
        },
    },
    "olmo3_multihead": {
        **_OLMO3,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000},
        },
    },
    "gemma3": {
        **_GEMMA3,
        "num_key_value_heads": 1,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "sliding_window_pattern": 3,
    },
    "gemma3_linear": {
        **_GEMMA3,
        "query_pre_attn_scalar": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
        },
    },
    "gemma3_vision": _GEMMA3_VISION,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_moe_mixed": {
        **_QWEN3_MOE,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "norm_topk_prob": False,
        "sliding_window": 6,
        "use_sliding_window": True,
    },
    "gpt_oss": _GPT_OSS,
    "mistral": _MISTRAL,
    "smollm3": _SMOLLM3,
    "smollm3_sliding": {
        **{key: _SMOLLM3[key] for key in _SMOLLM3 if key not in ("layer_types", "no_rope_layers")},
        "no_rope_layer_interval": 3,
        "sliding_window": 6,
        "use_sliding_window": True,
    },
    "phi3": _PHI3,
    "phi4_mini": {
        **_PHI3,
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 8,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": [1.3, 7.5], "short_factor": [1.0, 2.5], "type": "longrope"},
        "sliding_window": 262144,
        "tie_word_embeddings": True,
    },
    "ministral3": _MINISTRAL3,
    "mistral3_vision": {
        **_MISTRAL3,
        "text_config": {**_MISTRAL, "rope_theta": 1e9, "head_dim": 8, "sliding_window": None},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "ministral3_vision": {
        **_MISTRAL3,
        "text_config": {**_MINISTRAL3, "tie_word_embeddings": True},
        "dtype": "bfloat16",
    },
    "qwen35": _QWEN35,
    "qwen35_vision": _QWEN35_VISION,
    "qwen35_moe": _QWEN35_MOE,
    "qwen35_moe_vision": {
        **_QWEN35_VISION,
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            **{key: value for key, value in _QWEN35_MOE.items() if key != "architectures"},
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "vision_config": {**_QWEN35_VISION["vision_config"], "model_type": "qwen3_5_moe_vision"},
    },
    "gemma4": _GEMMA4,
    "gemma4_moe": {
        **_GEMMA4,
        "architectures": ["Gemma4ForCausalLM"],
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "enable_moe_block": True,
        "moe_intermediate_size": 12,
        "num_experts": 8,
        "top_k_experts": 3,
    },
    "gemma4_e": {  # E2B and E4B: two layers have keys and values, in periods of 2, and four share them
        **_GEMMA4,
        "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "attention_k_eq_v": False,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": _BASE["vocab_size"],
    },
    "gemma4_vision": {  # values of their own, and the last layer of the default pattern is full
        **_GEMMA4_TOKENS,
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "audio_config": None,
        "text_config": {
            **_GEMMA4_TEXT,
            "num_hidden_layers": 4,
            "attention_k_eq_v": False,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": _BASE["vocab_size"],
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "position_embedding_size": 4,
        },
    },
    "gemma4_unified": {  # the keys that transformers 5.24 writes
        **{key: value for key, value in _GEMMA4_UNIFIED.items() if "global" not in key},
        "architectures": ["Gemma4UnifiedForCausalLM"],
        "model_type": "gemma4_unified_text",
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": None,
        "per_layer_config": {"1": {"head_dim": 12, "num_key_value_heads": 4}},
        "rope_parameters": {
            "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "gemma4_unified_vision": {
        **_GEMMA4_TOKENS,
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 8},
        "text_config": {**_GEMMA4_UNIFIED, "model_type": "gemma4_unified_text", "num_hidden_layers": 4},
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "mm_embed_dim": 8,
            "mm_posemb_size": 4,
            "output_proj_dims": 24,
            "patch_size": 4,
            "pooling_kernel_size": 1,
        },
    },
}


def one_of_each_family(**others: str) -> tuple[str, ...]:
    """Return the first case of every family, or the case that `others` gives in its place.

    Gemma 4 with shared keys and values, or with experts, is a family of its own.
    """
    first: dict[tuple[str, bool, bool], str] = {}
    for case, config in CASES.items():
        text = config.get("text_config", config)
        shares, mixes = (bool(text.get(key)) for key in ("num_kv_shared_layers", "enable_moe_block"))
        first.setdefault((text["model_type"], shares, mixes), case)
    return tuple(others.get(case, case) for case in first.values())


def tokens_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """Return three rows with ragged left padding, longer than every sliding window and original context."""
    tokens = np.random.default_rng(0).integers(3, _BASE["vocab_size"], (3, LENGTH))
    mask = np.ones(tokens.shape, bool)
    mask[0, :7] = False
    mask[1, :15] = False
    return tokens, mask


def auto_class(directory: Path) -> Any:
    """Return the class of transformers with which a text model, or a multimodal one, is loaded."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    wrapped = "text_config" in json.loads((Path(directory) / "config.json").read_text())
    return AutoModelForImageTextToText if wrapped else AutoModelForCausalLM


def transformers_logits(directory: Path) -> np.ndarray:
    """Return the logits of a checkpoint, computed by transformers in float32."""
    import torch

    with torch.no_grad():
        return _torch_logits(_torch_model(directory)).numpy()


def write_transformers_gradients(directory: Path, target: Path) -> None:
    """Write a checkpoint with the gradients of the sum of the negative log-probabilities of real tokens.

    transformers computes them in float32; buffers keep their values.
    """
    import torch

    model, (tokens, mask) = _torch_model(directory), tokens_and_mask()
    logprobs = _torch_logits(model)[:, :-1].log_softmax(-1)
    chosen = logprobs.gather(-1, torch.from_numpy(tokens[:, 1:, None]))[..., 0]
    (-chosen * torch.from_numpy(mask[:, 1:] & mask[:, :-1])).sum().backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(target)


def _torch_model(directory: Path) -> Any:
    import torch

    loader = auto_class(directory)
    return loader.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def _torch_logits(model: Any) -> Any:
    import torch

    tokens, mask = tokens_and_mask()
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    output = model(
        input_ids=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        use_cache=False,
    )
    return output.logits


STACKED = ("qwen35_moe_vision",)
"""The cases whose experts are stacked in one tensor, as published; transformers 5.24 writes each."""


def stack_experts(file: Path) -> None:
    """Replace the matrices of the experts of each layer by `gate_up_proj` and `down_proj`."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    names = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for name in (f"{layer}.experts" for layer in sorted(names)):
        count = len([key for key in tensors if key.startswith(name) and "gate_proj" in key])
        matrices = {
            kind: torch.stack([tensors.pop(f"{name}.{expert}.{kind}_proj.weight") for expert in range(count)])
            for kind in ("gate", "up", "down")
        }
        tensors[f"{name}.gate_up_proj"] = torch.cat([matrices["gate"], matrices["up"]], dim=1)
        tensors[f"{name}.down_proj"] = matrices["down"]
    save_file(tensors, file, {"format": "pt"})


def make(case: str, config: dict) -> None:
    """Write one case: config.json, model.safetensors in bfloat16, and the logits of the real tokens."""
    import torch
    from transformers import AutoConfig

    directory = DIRECTORY / case
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(len(case))
    model = auto_class(directory).from_config(AutoConfig.from_pretrained(directory))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("_bias"):  # norms would otherwise be one, and biases zero
            parameter.data += 0.3 * torch.randn_like(parameter)
        if case == "gemma4_e" and "post_" in name:  # eight layers with larger outputs amplify rounding
            parameter.data *= 0.2
        if name.endswith("A_log"):  # slow decay, as after training: the output of one token may be near zero
            parameter.data.uniform_(-5, -2)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.uniform_(0.3, 1.2)
    model.to(torch.bfloat16).save_pretrained(directory)
    if case in STACKED:
        stack_experts(directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text('{\n  "eos_token_id": 2\n}\n')
    logits = transformers_logits(directory)[tokens_and_mask()[1]]
    np.savez_compressed(directory / "logits.npz", logits=logits)


if __name__ == "__main__":
    chosen = sys.argv[1:] or CASES
    for case, settings in ((case, CASES[case]) for case in chosen):
        make(case, settings)
        print(case)
