"""The update as a whole: alignment by hand, zero where it must be zero, the same on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.divergence import divergence
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.algorithm.update import Rows, completion_hidden, distillation_loss, make_update
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.sharding import Sharding, make_mesh, single_device
from sdft_jax.types import Rollout
from tiny import EOS, PAD, tiny_batch, tiny_model

COMMON = (
    "model.compute_dtype=float32",
    "train.batch_size=8",
    "sampling.max_new_tokens=6",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup=0",
    "divergence.chunk=16",
    "teacher.rate=0.1",
)


@functools.cache
def compiled(*overrides, mesh=None, eos=(EOS,)):
    """(config, model, initial state, update); tests of the same settings share one compilation."""
    config = load_config(None, [*COMMON, *overrides])
    sharding = None if mesh is None else Sharding(make_mesh(*mesh), config.sharding)
    model, params = tiny_model(sharding)
    optimizer = make_optimizer(config.optimizer, 10)
    update = make_update(model, optimizer, config, eos_ids=eos, pad_id=PAD)
    return config, model, init_state(model, params, optimizer, config), update


def setup(*overrides, **options):
    config, model, state, update = compiled(*overrides, **options)
    return config, model, jax.tree.map(jnp.copy, state), update  # an update donates its state


def run(*overrides, steps=3, **options):
    _, _, state, update = setup(*overrides, **options)
    history = []
    for step in range(steps):
        state, metrics = update(state, tiny_batch(seed=step))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history, update


@pytest.fixture(scope="module")
def single():
    return run()


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_same_on_every_mesh(single, mesh):
    state, history, _ = run(mesh=mesh)
    expected, expected_history, _ = single
    for ours, theirs in zip(history, expected_history, strict=True):
        np.testing.assert_array_equal(ours.rollout.tokens, theirs.rollout.tokens)
        np.testing.assert_allclose(ours.scalars["loss"], theirs.scalars["loss"], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rules",
    [
        ("sharding.sequence=tensor",),
        ("sharding.sequence=tensor", "sharding.vocab=null"),
        ("sharding.sequence=fsdp", "sharding.batch=data"),
        ("sharding.activation=tensor",),
        ("sharding.vocab=[fsdp,tensor]", "sharding.embed=null"),
    ],
    ids=" ".join,
)
def test_same_under_other_rules(single, rules):
    _, (metrics,), _ = run(*rules, mesh=(2, 2, 2), steps=1)
    expected = single[1][0]
    np.testing.assert_array_equal(metrics.rollout.tokens, expected.rollout.tokens)
    for name in ("loss", "grad_norm", "update_norm"):
        np.testing.assert_allclose(metrics.scalars[name], expected.scalars[name], rtol=1e-5, atol=1e-5)


def test_completions_that_the_rules_cannot_split_are_refused():
    rules = ("sharding.sequence=tensor", "sharding.vocab=null", "sampling.max_new_tokens=7")
    with pytest.raises(SdftError, match=r"completions: axis 'sequence' of size 7 .* 2 parts of .* tensor"):
        run(*rules, mesh=(2, 2, 2), steps=1)


def test_micro_batches_change_nothing(single):
    state, history, _ = run("train.micro_batch=2")
    assert history[-1].scalars["loss"] == pytest.approx(single[1][-1].scalars["loss"], rel=1e-5)
    np.testing.assert_allclose(history[0].divergence, single[1][0].divergence, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(single[0].params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_compiles_once_per_bucket(single):
    assert single[2]._cache_size() == 1
    _, _, state, update = setup()
    for prompt, teacher in [(6, 10), (8, 10), (6, 10), (8, 10)]:
        state, _ = update(state, tiny_batch(prompt=prompt, teacher=teacher))
    assert update is single[2]
    assert update._cache_size() == 2


def test_state_is_donated():
    _, _, state, update = setup()
    update(state, tiny_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.teacher, state.opt_state)))


def test_importance_ratio_is_one(single):
    for metrics in single[1]:
        assert metrics.scalars["importance_ratio"] == pytest.approx(1, abs=1e-4)
        assert metrics.scalars["importance_max"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("setting", ["token", "sequence"])
def test_applied_importance_of_the_same_policy_changes_nothing(single, setting):
    _, history, _ = run(f"objective.importance={setting}", steps=1)
    assert history[0].scalars["loss"] == pytest.approx(single[1][0].scalars["loss"], rel=1e-4)


def test_equal_prompts_and_weights_have_zero_loss():
    _, _, state, update = setup()
    batch = tiny_batch()
    same = dataclasses.replace(batch, teacher_prompt=batch.prompt, teacher_mask=batch.prompt_mask)
    _, metrics = update(state, same)
    assert abs(metrics.scalars["loss"]) < 1e-6
    assert metrics.scalars["grad_norm"] < 1e-5


def test_ema_follows_the_optimizer_inside_the_update():
    config, _, state, update = setup()
    assert config.teacher.rate == 0.1
    before = jax.device_get(state.teacher)
    state, _ = update(state, tiny_batch())
    after = jax.device_get(state)
    jax.tree.map(
        lambda old, new, student: np.testing.assert_allclose(new, 0.9 * old + 0.1 * student, atol=1e-6),
        before,
        after.teacher,
        after.params,
    )


def test_live_teacher_keeps_no_copy():
    _, _, state, update = setup("teacher.schedule=live")
    assert state.teacher == {}
    state, metrics = update(state, tiny_batch())
    assert np.isfinite(metrics.scalars["loss"])


def test_frozen_parameters_do_not_move():
    _, _, state, update = setup("optimizer.freeze=[embed, layers/q]")
    before = jax.device_get(state.frozen)
    state, _ = update(state, tiny_batch())
    assert set(before) == {"embed", "layers"}
    assert "embed" not in state.params
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.frozen))


def test_bfloat16_state_and_compute():
    config = load_config(None, [*COMMON, "model.param_dtype=bfloat16"])
    model, params = tiny_model()
    model = dataclasses.replace(model, compute_dtype="bfloat16")
    optimizer = make_optimizer(config.optimizer, 10)
    state = init_state(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), optimizer, config)
    state, metrics = make_update(model, optimizer, config, eos_ids=(EOS,), pad_id=PAD)(state, tiny_batch())
    assert jax.tree.leaves(state.params)[0].dtype == jnp.bfloat16
    assert jax.tree.leaves(state.teacher)[0].dtype == jnp.float32
    assert np.isfinite(metrics.scalars["loss"])
    assert metrics.scalars["importance_ratio"] == pytest.approx(1, abs=0.1)


def rows_of(batch, completion, mask, weights):
    rollout = Rollout(completion, mask, jnp.zeros(completion.shape))
    return Rows(batch, rollout, mask, weights)


def test_alignment_on_a_case_worked_by_hand():
    """Prompts [_, 5, 6] and [7, 8, 9]; teacher prompts of 5 and 2 tokens; completions [10, 11] and [12].

    Without padding, token 10 is predicted after `5 6`, 11 after `5 6 10`, 12 after `7 8 9`; for the
    teacher, 10 after `20 21 22 23 24`, 11 after `20 21 22 23 24 10`, and 12 after `25 26`.
    """
    config, model, _, _ = setup("divergence.alpha=1")
    _, params = tiny_model()
    batch = dataclasses.replace(
        jax.tree.map(jnp.asarray, tiny_batch(rows=2)),
        prompt=jnp.array([[PAD, 5, 6], [7, 8, 9]]),
        prompt_mask=jnp.array([[False, True, True], [True] * 3]),
        teacher_prompt=jnp.array([[20, 21, 22, 23, 24], [PAD, PAD, PAD, 25, 26]]),
        teacher_mask=jnp.array([[True] * 5, [False] * 3 + [True] * 2]),
    )
    completion = jnp.array([[10, 11], [12, PAD]])
    mask = jnp.array([[True, True], [True, False]])
    weights = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    rows = rows_of(batch, completion, mask, weights)
    _, stats = jax.jit(lambda params, rows: distillation_loss(model, params, params, rows, config))(
        params, rows
    )
    logits = jax.jit(model.logits)

    def log_probs(*tokens):
        """After these tokens; right-padded, so that one shape serves all cases."""
        padded = np.array([[*tokens, *[PAD] * (6 - len(tokens))]])
        return np.float64(jax.nn.log_softmax(logits(params, padded, padded != PAD)[0, len(tokens) - 1]))

    cases = [
        (0, 0, log_probs(5, 6), log_probs(20, 21, 22, 23, 24)),
        (0, 1, log_probs(5, 6, 10), log_probs(20, 21, 22, 23, 24, 10)),
        (1, 0, log_probs(7, 8, 9), log_probs(25, 26)),
    ]
    for row, position, student, teacher in cases:
        token = completion[row, position]
        assert stats.logprob[row, position] == pytest.approx(student[token], abs=1e-4)
        assert stats.log_ratio[row, position] == pytest.approx(teacher[token] - student[token], abs=1e-4)
        expected = (np.exp(student) * (student - teacher)).sum()
        assert stats.divergence[row, position] == pytest.approx(expected, abs=1e-4)


def test_gradient_is_zero_on_masked_tokens():
    config, model, _, _ = setup()
    _, params = tiny_model()
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    completion, mask, weights = ragged_completions()
    head = model.head(params)

    @jax.jit
    def gradient(nudge):
        def loss(nudge):
            hidden = completion_hidden(model, params, batch.prompt, batch.prompt_mask, completion, mask)
            taught = 0.5 * jax.lax.stop_gradient(hidden)
            return divergence(
                hidden + nudge, head, taught, head, completion, weights, config.divergence, single_device()
            )[0]

        return jax.grad(loss)(nudge)

    found, used = np.asarray(gradient(jnp.zeros((8, 6, 32)))), np.asarray(weights) > 0
    assert np.all(found[~used] == 0)
    assert np.all(np.abs(found[used]).max(-1) > 0)


def test_what_stands_in_padding_does_not_matter():
    config, model, _, _ = setup()
    _, params = tiny_model()
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    completion, mask, weights = ragged_completions()
    student = jax.tree.map(lambda p: p * 0.9, params)

    @jax.jit
    def gradients(token):
        other = dataclasses.replace(
            batch,
            prompt=jnp.where(batch.prompt_mask, batch.prompt, token),
            teacher_prompt=jnp.where(batch.teacher_mask, batch.teacher_prompt, token),
        )
        rows = rows_of(other, jnp.where(mask, completion, token), mask, weights)
        return jax.value_and_grad(lambda p: distillation_loss(model, p, params, rows, config)[0])(student)

    jax.tree.map(np.testing.assert_array_equal, gradients(3), gradients(17))


def ragged_completions():
    """(tokens, mask, weights) with 0 to 6 tokens a row, the first two of which carry no loss."""
    tokens = np.random.default_rng(1).integers(2, 32, size=(8, 6)).astype(np.int32)
    mask = np.arange(6)[None, :] < np.array([[6], [5], [4], [3], [2], [1], [0], [6]])
    return (
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jnp.asarray(mask & (np.arange(6)[None, :] >= 2), jnp.float32),
    )


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=str)
@pytest.mark.parametrize("micro", ["null", "4"])
def test_completion_buckets_change_no_result(mesh, micro):
    """Completions that end early, of which some batches use each of the buckets."""
    common, used = ("sampling.temperature=2.0", f"train.micro_batch={micro}"), set()
    (_, _, plain, update), (_, _, state, bucketed) = (
        setup(*common, *more, mesh=mesh, eos=tuple(range(1, 20)))
        for more in ((), ("train.completion_buckets=[4,2]",))
    )
    for seed in range(6):
        batch = tiny_batch(seed=seed)
        plain, expected = update(plain, batch)
        state, metrics = bucketed(state, batch)
        longest = int(np.max(np.sum(metrics.rollout.mask, axis=1)))
        used.add(next(width for width in (2, 4, 6) if width >= longest))
        np.testing.assert_array_equal(metrics.rollout.tokens, expected.rollout.tokens)
        for name, value in expected.scalars.items():
            np.testing.assert_allclose(metrics.scalars[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        mask = np.asarray(expected.rollout.mask)
        np.testing.assert_allclose(
            np.asarray(metrics.divergence)[mask], np.asarray(expected.divergence)[mask], rtol=1e-4, atol=1e-5
        )
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(used) > 1, used


def test_the_share_of_padding_in_the_prompts_is_reported():
    _, _, state, update = setup()
    batch = tiny_batch()
    _, metrics = update(state, batch)
    masks = np.concatenate([batch.prompt_mask.ravel(), batch.teacher_mask.ravel()])
    np.testing.assert_allclose(metrics.scalars["prompt_padding"], 1 - masks.mean(), rtol=1e-6)


def test_empty_masks_give_zero_and_no_nan():
    _, _, state, update = setup("objective.skip_tokens=6")
    before = jax.device_get(state.params)
    state, metrics = update(state, tiny_batch())
    assert metrics.scalars["loss"] == 0
    assert metrics.scalars["grad_norm"] == 0
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.device_get(metrics.scalars)))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))


def test_rollouts_differ_from_step_to_step():
    """The same weights and prompts, at steps 0 and 1."""
    _, _, state, update = setup()
    later = dataclasses.replace(jax.tree.map(jnp.copy, state), step=jnp.int32(1))
    first, second = (update(s, tiny_batch())[1].rollout.tokens for s in (state, later))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("overrides", "mesh", "message"),
    [
        (["train.micro_batch=3"], (1, 1, 1), r"batch_size=8 is not divisible by train\.micro_batch=3"),
        (["train.micro_batch=4"], (8, 1, 1), r"micro_batch=4 .* 8 parts"),
        (["train.batch_size=12"], (8, 1, 1), r"batch_size=12 .* 8 parts"),
    ],
)
def test_batches_that_do_not_divide(overrides, mesh, message):
    with pytest.raises(SdftError, match=message):
        setup(*overrides, mesh=mesh)
