"""Our side of the numerical comparison with TRL."""

import jax
import numpy as np
import pytest

from benches import small_model
from sdft_jax.models import load_model
from sdft_jax.studies.bench import trl_check
from sdft_jax.types import Sequences


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return small_model(tmp_path_factory)


def test_our_loss_is_the_mean_of_the_divergence_of_each_row(directory, tmp_path):
    """The reference is computed in float64 from full logits, without padding."""
    model, student = load_model(directory)
    teacher = jax.tree.map(lambda p: 1.1 * p, student)
    arrays = trl_check.random_rows(np.random.default_rng(), model.architecture.vocab_size)
    loss, gradients = trl_check.ours(model, student, teacher, arrays, tmp_path / "gradients")
    means = []
    for row in range(trl_check.ROWS):
        rows = {name: x[row : row + 1] for name, x in arrays.items()}
        count = rows["completion_mask"].sum()
        logs = []
        for params, side in ((student, "prompt"), (teacher, "teacher")):
            prompt = rows[side][rows[f"{side}_mask"]]
            tokens = np.concatenate([prompt, rows["completion"][0, :count]])[None]
            sequences = Sequences(tokens, np.ones_like(tokens, bool))
            logits = np.asarray(model.logits(params, sequences), np.float64)
            logits = logits[0, len(prompt) - 1 : -1]
            logs.append(
                logits
                - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - logits.max(-1, keepdims=True)
            )
        means.append(np.mean(np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)))
    np.testing.assert_allclose(loss, np.mean(means), rtol=1e-4)
    assert "model.embed_tokens.weight" in gradients
