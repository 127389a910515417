"""Values and gradients compared with float64 NumPy, on several meshes; the program has no [B, T, V] array."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdft_jax.algorithm.divergence as divergence_module
from sdft_jax.algorithm.chunked_loss import FactoredLogits
from sdft_jax.algorithm.divergence import divergence
from sdft_jax.config.settings import DivergenceConfig
from sdft_jax.sharding import Rules, Sharding, make_mesh, single_device

B, T, D, V = 8, 5, 16, 48


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    arrays = dict(
        student_hidden=rng.normal(size=(B, T, D)),
        student_head=0.5 * rng.normal(size=(V, D)),
        teacher_hidden=rng.normal(size=(B, T, D)),
        teacher_head=0.5 * rng.normal(size=(V, D)),
    )
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    weights = rng.uniform(size=(B, T)).astype(np.float32)
    weights[0] = 0  # an empty row
    weights[1, 3:] = 0
    arrays |= dict(targets=rng.integers(0, V, size=(B, T)).astype(np.int32), weights=weights)
    return jax.tree.map(jnp.asarray, arrays)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference_value(s_logits, t_logits, target, config):
    """Return the divergence of one token in float64, from its definition and not from the code under test."""
    log_s, log_t = log_softmax(s_logits / config.temperature), log_softmax(t_logits / config.temperature)
    if config.support == "sampled":
        return log_s[target] - log_t[target]
    if config.support != "full":
        tops = {"student": [s_logits], "teacher": [t_logits], "union": [s_logits, t_logits]}[config.support]
        inside = sorted({i for x in tops for i in np.argsort(-x)[: config.top_k]})
        outside = [i for i in range(len(log_s)) if i not in inside]
        tail = lambda x: [np.log(np.exp(x[outside]).sum())] if outside else []  # noqa: E731
        if config.tail == "bucket":
            log_s, log_t = (np.concatenate([x[inside], tail(x)]) for x in (log_s, log_t))
        else:
            log_s, log_t = log_softmax(log_s[inside]), log_softmax(log_t[inside])
    s, t = np.exp(log_s), np.exp(log_t)
    if config.alpha == 1:
        return (s * (log_s - log_t)).sum()
    if config.alpha == 0:
        return (t * (log_t - log_s)).sum()
    log_m = np.log((1 - config.alpha) * s + config.alpha * t)
    forward, reverse = (t * (log_t - log_m)).sum(), (s * (log_s - log_m)).sum()
    return config.alpha * forward + (1 - config.alpha) * reverse


def reference_gradient(s_logits, t_logits, target, config):
    """Return the gradient by central differences in float64; the sampled estimator's is its value times the
    score function.
    """
    if config.support == "sampled":
        log_s = log_softmax(s_logits / config.temperature)
        value = reference_value(s_logits, t_logits, target, config)
        return value * (np.eye(len(log_s))[target] - np.exp(log_s)) / config.temperature
    gradient, h = np.zeros_like(s_logits), 1e-6
    for i in range(len(s_logits)):
        step = np.zeros_like(s_logits)
        step[i] = h
        up = reference_value(s_logits + step, t_logits, target, config)
        gradient[i] = (up - reference_value(s_logits - step, t_logits, target, config)) / (2 * h)
    return gradient


def reference(inputs, config):
    x = {
        name: np.asarray(value, np.float64 if value.dtype != np.int32 else np.int32)
        for name, value in inputs.items()
    }
    s_logits = x["student_hidden"] @ x["student_head"].T
    t_logits = x["teacher_hidden"] @ x["teacher_head"].T
    values, d_logits = np.zeros((B, T)), np.zeros((B, T, V))
    for b, t in itertools.product(range(B), range(T)):
        arguments = (s_logits[b, t], t_logits[b, t], x["targets"][b, t], config)
        values[b, t] = reference_value(*arguments)
        d_logits[b, t] = x["weights"][b, t] * reference_gradient(*arguments)
    d_hidden = d_logits @ x["student_head"]
    d_head = np.einsum("btv,btd->vd", d_logits, x["student_hidden"])
    return values, (x["weights"] * values).sum(), d_hidden, d_head


def divergence_of(arrays, config, sharding):
    student, teacher = (
        FactoredLogits(arrays[f"{role}_hidden"], arrays[f"{role}_head"]) for role in ("student", "teacher")
    )
    return divergence(student, teacher, arrays["targets"], arrays["weights"], config, sharding)


def run(inputs, config, sharding):
    """Return (statistics, sum, gradient of the student's hidden states, gradient of its head)."""

    def loss(student_hidden, student_head):
        student = dict(student_hidden=student_hidden, student_head=student_head)
        return divergence_of(inputs | student, config, sharding)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, stats), (d_hidden, d_head) = step(inputs["student_hidden"], inputs["student_head"])
    return stats, value, d_hidden, d_head


DIRECTIONS = [dict(alpha=a) for a in (0.0, 1.0, 0.5, 0.1)]
TOP_K = [
    dict(alpha=a, support=s, tail=t, top_k=7)
    for a, s, t in [
        (0.0, "teacher", "renormalise"),
        (1.0, "teacher", "bucket"),
        (0.5, "student", "bucket"),
        (1.0, "student", "renormalise"),
        (0.0, "union", "bucket"),
        (0.3, "union", "renormalise"),
    ]
]
OTHERS = [
    dict(alpha=1.0, support="sampled"),
    dict(alpha=1.0, temperature=0.7),
    dict(alpha=0.0, support="teacher", top_k=V),
]


@pytest.mark.parametrize("settings", DIRECTIONS + TOP_K + OTHERS, ids=str)
def test_equals_float64_numpy(inputs, settings):
    config = DivergenceConfig(**settings, chunk=7)  # 7 does not divide the 40 tokens
    stats, value, d_hidden, d_head = run(inputs, config, single_device())
    values, expected, expected_hidden, expected_head = reference(inputs, config)
    np.testing.assert_allclose(stats.divergence, values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(d_hidden, expected_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_head, expected_head, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
def test_equal_roles_have_no_divergence_and_no_gradient(inputs, alpha):
    both = inputs | dict(teacher_hidden=inputs["student_hidden"], teacher_head=inputs["student_head"])
    stats, value, d_hidden, d_head = run(both, DivergenceConfig(alpha=alpha), single_device())
    assert np.max(np.abs(stats.divergence)) < 1e-6
    assert np.max(np.abs(value)) < 1e-6
    assert max(np.max(np.abs(d_hidden)), np.max(np.abs(d_head))) < 1e-6


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_vanishing_probabilities_and_nearly_equal_roles(inputs, alpha):
    """The sums of unnormalized probabilities do not overflow, underflow to NaN or cancel."""
    config = DivergenceConfig(alpha=alpha)
    sharp = inputs | {name: 40 * inputs[name] for name in ("student_head", "teacher_head")}
    near = inputs | dict(
        teacher_hidden=inputs["student_hidden"] + 1e-2 * inputs["teacher_hidden"],
        teacher_head=inputs["student_head"],
    )
    for case, tolerance in ((sharp, dict(rtol=1e-4, atol=1e-4)), (near, dict(rtol=0, atol=1e-6))):
        stats, _, d_hidden, _ = run(case, config, single_device())
        values, _, expected, _ = reference(case, config)
        np.testing.assert_allclose(stats.divergence, values, **tolerance)
        np.testing.assert_allclose(d_hidden, expected, rtol=1e-3, atol=1e-3 if case is sharp else 1e-6)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_a_token_with_probability_zero_adds_nothing(alpha):
    """The student's logits of token 2, and both roles' of token 4, are -inf."""
    random = jax.random.normal(jax.random.key(0), (2, 3, 7))
    student, teacher = random.at[0, :, 2].set(-jnp.inf).at[:, :, 4].set(-jnp.inf)
    possible = jnp.array([0, 1, 3, 5, 6])
    config, targets = DivergenceConfig(alpha=alpha), jnp.zeros(3, jnp.int32)
    stats, values, gradient = divergence_module._chunk(student, teacher, targets, (), config=config)
    if alpha == 1:  # KL(S || T) has no term for a token with S = 0; T is normalized over all tokens
        log_s, log_t = (x - jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (student, teacher))
        expected = jnp.sum((jnp.exp(log_s) * (log_s - log_t))[:, possible], axis=-1)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert jnp.isfinite(gradient).all()
    assert not gradient[:, 4].any()
    assert jnp.isfinite(stats.student_entropy).all()


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [dict(alpha=1.0), dict(alpha=0.5, support="union", top_k=7), dict(support="sampled")], ids=str
)
def test_same_on_every_mesh(inputs, settings):
    config = DivergenceConfig(**settings, chunk=4)
    one = run(inputs, config, single_device())
    for shape in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]:
        assert_same(run(inputs, config, Sharding(make_mesh(*shape))), one)


def test_model_width_on_a_mesh_axis_that_splits_no_tokens(inputs):
    rules = Rules(batch="data", embed="fsdp")
    many = run(inputs, DivergenceConfig(), Sharding(make_mesh(2, 2, 2), rules))
    assert_same(many, run(inputs, DivergenceConfig(), single_device()))


@pytest.mark.parametrize(
    "rules",
    [
        Rules(sequence="tensor"),
        Rules(vocab="fsdp", embed=None),
        Rules(vocab=("fsdp", "tensor"), embed="data"),
    ],
    ids=str,
)
def test_mesh_axes_that_split_both_tokens_and_vocabulary(inputs, rules):
    """Devices with different tokens must not sum over their parts of the vocabulary."""
    inputs = {
        name: x[:, :4] if name in ("student_hidden", "teacher_hidden", "targets", "weights") else x
        for name, x in inputs.items()
    }
    one = run(inputs, DivergenceConfig(), single_device())
    many = run(inputs, DivergenceConfig(), Sharding(make_mesh(1, 2, 2), rules))
    assert_same(many, one)


def test_statistics_equal_float64_numpy(inputs):
    stats, *_ = run(inputs, DivergenceConfig(temperature=2.0), single_device())
    s_logits = np.float64(inputs["student_hidden"]) @ inputs["student_head"].T
    t_logits = np.float64(inputs["teacher_hidden"]) @ inputs["teacher_head"].T
    log_s, log_t = log_softmax(s_logits / 2), log_softmax(t_logits / 2)
    pick = lambda x: np.take_along_axis(x, inputs["targets"][..., None], -1)[..., 0]  # noqa: E731
    expected = dict(
        forward_kl=(np.exp(log_t) * (log_t - log_s)).sum(-1),
        reverse_kl=(np.exp(log_s) * (log_s - log_t)).sum(-1),
        student_entropy=-(np.exp(log_s) * log_s).sum(-1),
        teacher_entropy=-(np.exp(log_t) * log_t).sum(-1),
        logprob=pick(log_softmax(s_logits)),
        log_ratio=pick(log_t - log_s),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_tokens_of_weight_zero_have_no_gradient(inputs):
    _, _, d_hidden, _ = run(inputs, DivergenceConfig(), single_device())
    masked = np.asarray(inputs["weights"]) == 0
    assert np.all(np.asarray(d_hidden)[masked] == 0)
    assert np.all(np.abs(np.asarray(d_hidden)[~masked]).max(-1) > 0)


def test_the_teacher_has_no_gradient(inputs):
    def loss(teacher_hidden, teacher_head):
        teacher = dict(teacher_hidden=teacher_hidden, teacher_head=teacher_head)
        return divergence_of(inputs | teacher, DivergenceConfig(alpha=0.5), single_device())[0]

    gradients = jax.grad(loss, argnums=(0, 1))(inputs["teacher_hidden"], inputs["teacher_head"])
    assert all(np.all(np.asarray(g) == 0) for g in gradients)


@pytest.mark.parametrize("settings", [DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[2], TOP_K[-1]], ids=str)
def test_equal_roles_have_no_divergence_on_any_support(inputs, settings):
    same = inputs | dict(teacher_hidden=inputs["student_hidden"], teacher_head=inputs["student_head"])
    _, value, d_hidden, _ = run(same, DivergenceConfig(**settings), single_device())
    assert abs(float(value)) < 1e-6
    assert np.abs(d_hidden).max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_the_compiled_program_has_no_logits_of_the_whole_batch(shape):
    b, t, d, v, chunk = 8, 64, 32, 1000, 16
    config, sharding = DivergenceConfig(chunk=chunk), Sharding(make_mesh(*shape))
    abstract = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    hidden, head, tokens = abstract(b, t, d), abstract(v, d), abstract(b, t)

    def loss(student, teacher, targets, weights):
        return divergence(student, teacher, targets, weights, config, sharding)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    logits, targets = FactoredLogits(hidden, head), abstract(b, t, dtype=jnp.int32)
    text = step.lower(logits, logits, targets, tokens).compile().as_text()
    shapes = [[int(n) for n in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    of_vocabulary = [s for s in shapes if any(n in (v, v // 2) for n in s)]
    assert of_vocabulary, "the program must contain arrays with the head's shape"
    assert max(np.prod(s) for s in of_vocabulary) <= max(v * d, chunk * v)
