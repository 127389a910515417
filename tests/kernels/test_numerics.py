"""Programs and results do not depend on the settings of JAX that a process or its environment makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm import abstract_state, init_state, make_update
from sdft_jax.algorithm.optimizer import learning_rates
from sdft_jax.config.settings import SamplingConfig
from sdft_jax.evaluation import completions
from sdft_jax.kernels.numerics import bits
from sdft_jax.plan.program import lower_update
from sdft_jax.sampling import generate, make_key
from sdft_jax.types import StopTokens
from tiny import EOS, PAD, tiny_batch, tiny_learner

SETTINGS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_high_dynamic_range_gumbel": True,
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_legacy_prng_key": "error",
}
SAMPLING = SamplingConfig(max_new_tokens=6, top_p=0.9)


@pytest.fixture
def other(request):
    """Run a test with another value of one setting."""
    name, value = request.param
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield
    jax.config.update(name, before)


each_setting = pytest.mark.parametrize("other", SETTINGS.items(), ids=SETTINGS, indirect=True)
changing_results = pytest.mark.parametrize(
    "other", list(SETTINGS.items())[:4], ids=list(SETTINGS)[:4], indirect=True
)


LEARNER, PARAMS = tiny_learner(
    "sampling.max_new_tokens=6", "sampling.top_p=0.9", "optimizer.learning_rate=0.01"
)


def program() -> str:
    return lower_update(LEARNER).as_text()


def results() -> dict[str, object]:
    """Return the results of sampling, of two updates and of the schedule."""
    rollout = generate(
        LEARNER.model, PARAMS, tiny_batch().prompt, make_key(3), SAMPLING, StopTokens((EOS,), PAD)
    )
    state, update = init_state(LEARNER, jax.tree.map(jnp.copy, PARAMS)), make_update(LEARNER)
    state, _ = update(state, tiny_batch())
    state, metrics = update(state, tiny_batch(seed=1))
    rates = learning_rates(LEARNER.config.optimizer, 10)
    return jax.device_get({"state": state, "metrics": metrics, "rollout": rollout, "rates": rates})


@pytest.fixture(scope="module")
def expected():
    return {"program": program(), "results": results()}


@each_setting
def test_the_program_is_the_same(expected, other):
    assert program() == expected["program"]


@changing_results
def test_results_and_their_dtypes_are_the_same(expected, other):
    found = results()
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), found, expected["results"])
    assert all(jax.tree.leaves(same)), same


def test_products_of_float32_have_float32_precision(expected):
    state, batch = abstract_state(LEARNER), tiny_batch(completion=6)
    role = state.params, batch.prompt
    divergence = completions._nats.lower(LEARNER.model, role, role, batch.target)
    for text in (expected["program"], divergence.as_text()):
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_bits():
    assert [bits(x) for x in ("uint4", "int8", "bfloat16", jnp.float32)] == [4, 8, 16, 32]
