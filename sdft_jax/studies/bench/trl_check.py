"""Comparison of loss and gradient with TRL's SDFTTrainer, for the same weights, prompts and completions.

Prompts and completions have several lengths, to test the masks, and the teacher's weights differ from the
student's. Our loss is the function that `algorithm/update.py` differentiates; TRL's is computed by methods of
its trainer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from sdft_jax.algorithm import token_weights
from sdft_jax.algorithm.update import LossOptions, Rows, distillation_loss
from sdft_jax.config import load_config
from sdft_jax.models import Model, load_model, save_pretrained
from sdft_jax.studies.bench.trl_config import trl_config
from sdft_jax.types import Params, Rollout, Sequences, TokenBatch

WIDTHS = {"prompt": 12, "teacher": 20, "completion": 10}
"""Name -> number of columns; rows fill at least two of them, and the rest is padding."""
ROWS = 4

Sides = tuple[float, dict[str, np.ndarray]]
"""The loss, and the gradient of each tensor by its name in the checkpoint."""


def differences(directory: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the relative differences of the loss, the whole gradient, and the gradient of the worst tensor.

    Args:
        directory: the directory for the teacher and the gradients.
        settings: the case's settings for `trl_sides`: `model`, `rows`, `batch`, `output`, `new`, `steps`.
    """
    model, student = load_model(settings["model"])
    noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(student)))
    leaves, treedef = jax.tree.flatten(student)
    perturbed = [
        p + 0.1 * jax.random.normal(k, p.shape) * jnp.std(p) for p, k in zip(leaves, noise, strict=True)
    ]
    teacher = jax.tree.unflatten(treedef, perturbed)
    save_pretrained(model, teacher, None, directory / "teacher")
    arrays = random_rows(np.random.default_rng(0), model.architecture.vocab_size)
    loss, gradients = ours(model, student, teacher, arrays, directory / "gradients")
    expected, expected_gradients = trl(settings, directory / "teacher", arrays)
    by_tensor = {
        name: float(np.linalg.norm(gradients[name] - g) / np.linalg.norm(g))
        for name, g in expected_gradients.items()
    }
    whole = [
        np.concatenate([side[name].ravel() for name in by_tensor]) for side in (gradients, expected_gradients)
    ]
    return {
        "loss": abs(loss - expected) / abs(expected),
        "gradient": float(np.linalg.norm(whole[0] - whole[1]) / np.linalg.norm(whole[1])),
        "gradient of the worst tensor": max(by_tensor.values()),
    }


def random_rows(rng: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """Return random tokens and masks by name; prompts are left-padded and completions right-padded."""
    arrays: dict[str, np.ndarray] = {}
    for name, width in WIDTHS.items():
        lengths = rng.integers(2, width + 1, ROWS)
        lengths[0] = width
        columns = np.arange(width)[None, :]
        left_padded = name != "completion"
        mask = columns >= width - lengths[:, None] if left_padded else columns < lengths[:, None]
        arrays[name] = np.where(mask, rng.integers(1, vocabulary, (ROWS, width)), 0).astype(np.int32)
        arrays[f"{name}_mask"] = mask
    return arrays


def ours(
    model: Model, student: Params, teacher: Params, arrays: Mapping[str, np.ndarray], directory: Path
) -> Sides:
    """Compute the loss and gradient of an update.

    The gradient is written and read as a checkpoint, which names its tensors as Hugging Face does.
    """
    config = load_config(None, ["divergence.alpha=1.0", "divergence.chunk=8"])
    a = {name: jnp.asarray(x) for name, x in arrays.items()}
    none = Sequences(jnp.zeros((ROWS, 0), jnp.int32), jnp.zeros((ROWS, 0), bool))
    prompt, teacher_prompt = (Sequences(a[name], a[f"{name}_mask"]) for name in ("prompt", "teacher"))
    batch = TokenBatch(prompt, teacher_prompt, none, jnp.arange(ROWS), jnp.ones(ROWS))
    rollout = Rollout(a["completion"], a["completion_mask"], jnp.zeros(a["completion"].shape))
    mask = token_weights.loss_mask(rollout, (), config.objective)
    rows = Rows(batch, rollout, mask, token_weights.aggregation_weights(mask, batch.weight, config.objective))

    options = LossOptions(config.divergence, config.objective)

    def loss(params: Params) -> jax.Array:
        return distillation_loss(model, params, teacher, rows, options)[0]

    with model.numerics():
        value, gradients = jax.jit(jax.value_and_grad(loss))(student)
    save_pretrained(model, gradients, None, directory, dtype="float32")
    return float(value), _tensors(directory)


def trl(settings: Mapping[str, Any], teacher: Path, arrays: Mapping[str, np.ndarray]) -> Sides:
    """Compute the same loss and gradient with TRL's trainer."""
    import torch
    from datasets import Dataset
    from trl.experimental.sdft import SDFTTrainer

    line = Path(settings["rows"]).read_text(encoding="utf-8").splitlines()[0]
    prompt = [{"role": "user", "content": json.loads(line)["prompt"]}]
    dataset = Dataset.from_list([{"prompt": prompt, "privileged_context": "none"}])
    trainer: Any = SDFTTrainer(
        settings["model"], trl_config(settings, "float32", use_cpu=True), train_dataset=dataset
    )
    weights = {name: torch.as_tensor(x) for name, x in _tensors(teacher).items()}
    trainer.teacher_model.load_state_dict(weights, strict=False)
    trainer.teacher_model.tie_weights()
    t = {name: torch.as_tensor(x).long() for name, x in arrays.items()}
    inputs = {
        "prompt_ids": t["prompt"],
        "prompt_mask": t["prompt_mask"],
        "completion_ids": t["completion"],
        "completion_mask": t["completion_mask"],
        "teacher_input_ids": torch.cat([t["teacher"], t["completion"]], dim=1),
        "teacher_attention_mask": torch.cat([t["teacher_mask"], t["completion_mask"]], dim=1),
    }
    logits = trainer._compute_teacher_student_logits(trainer.model, trainer.teacher_model, inputs)
    loss = trainer._compute_self_distillation_loss(trainer.model, inputs, logits)
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}
    return loss.item(), gradients


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    return {
        name: x for file in sorted(directory.glob("*.safetensors")) for name, x in load_file(file).items()
    }
