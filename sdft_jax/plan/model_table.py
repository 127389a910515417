"""The README's table of models, with the smallest TPU slices that should hold their training.

    python -m sdft_jax.plan.model_table

prints it. Nothing is compiled: arrays are counted from shapes, with the default settings (batches of 32 rows,
prompts of up to 2,048 tokens, 1,024 new ones), FSDP over all chips, and one tenth of the memory left free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax

from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config
from sdft_jax.models import Model
from sdft_jax.plan.footprint import update_arrays
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.slices import smallest_slices
from sdft_jax.sharding import single_device

MODELS: dict[str, Sequence[str]] = {
    "Qwen2.5": ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-32B"),
    "Qwen3, with experts": ("Qwen3-30B-A3B",),
    "gpt-oss": ("gpt-oss-20b",),
    "Qwen3.5": ("Qwen3.5-9B", "Qwen3.5-35B-A3B"),
    "Llama 3": ("Llama-3.2-1B", "Llama-3.2-3B"),
    "Mistral, Ministral 3": ("Mistral-7B-v0.3", "Ministral-3-3B-2512", "Ministral-3-8B-2512"),
    "SmolLM3": ("SmolLM3-3B",),
    "Phi-4": ("Phi-4-mini", "phi-4"),
    "OLMo 3": ("Olmo-3-7B",),
    "Gemma 3": ("gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b"),
    "Gemma 4": ("gemma-4-E2B", "gemma-4-E4B", "gemma-4-12B", "gemma-4-26B-A4B", "gemma-4-31B"),
}
"""Family -> names of `plan/shapes.json`."""
LORA = ("lora.rank=32",)


def rows(families: Sequence[str] = tuple(MODELS)) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| family | model | parameters | full fine-tuning | LoRA, rank 32 |"
    yield "| --- | --- | --- | --- | --- |"
    for family in families:
        for name in MODELS[family]:
            cells = (family, name, _parameters(name), _slices(name), _slices(name, *LORA))
            yield f"| {' | '.join(cells)} |"


def _parameters(name: str) -> str:
    shapes = Model(model_shape(load_config(None, [f"model.path={name}"]))).abstract_params()
    return f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9:.1f} B"


def _slices(name: str, *settings: str) -> str:
    config = load_config(None, [f"model.path={name}", *settings])
    model = make_model(config, model_shape(config), single_device())
    return ", ".join(smallest_slices(config, model, update_arrays)) or "none"


if __name__ == "__main__":
    print("\n".join(rows()))
