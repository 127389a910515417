"""Make tests/fixtures/models: small random checkpoints, and their logits computed by transformers.

    python tests/make_fixtures.py

requires torch and transformers; the tests require neither. Each config.json has the keys of the published
checkpoints of its family: most have those of transformers 4, some those of transformers 5.
"""

import json
from pathlib import Path

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
}


def tokens_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """Return three rows with ragged left padding, longer than every sliding window and original context."""
    tokens = np.random.default_rng(0).integers(3, _BASE["vocab_size"], (3, LENGTH))
    mask = np.ones(tokens.shape, bool)
    mask[0, :7] = False
    mask[1, :15] = False
    return tokens, mask


def transformers_logits(directory: Path) -> np.ndarray:
    """Return the logits of a checkpoint, computed by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    tokens, mask = tokens_and_mask()
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
        )
    return output.logits.numpy()


def make(name: str, config: dict) -> None:
    """Write one case: config.json, model.safetensors in bfloat16, and the logits of the real tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = DIRECTORY / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms would otherwise be one, and biases zero
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text('{\n  "eos_token_id": 2\n}\n')
    logits = transformers_logits(directory)[tokens_and_mask()[1]]
    np.savez_compressed(directory / "logits.npz", logits=logits)


if __name__ == "__main__":
    for case, settings in CASES.items():
        make(case, settings)
        print(case)
