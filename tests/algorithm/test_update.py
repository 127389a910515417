"""The update of every method: alignment by hand, losses that must be zero, and the same result on every
mesh.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm import FactoredLogits, abstract_state, init_state, make_update
from sdft_jax.algorithm.divergence import divergence
from sdft_jax.algorithm.token_weights import aggregation_weights
from sdft_jax.algorithm.update import LossOptions, Rows, distillation_loss, loss_options
from sdft_jax.config.settings import DivergenceConfig, ObjectiveConfig
from sdft_jax.errors import SdftError
from sdft_jax.sampling import decode, generate
from sdft_jax.sharding import single_device
from sdft_jax.types import Rollout, Sequences
from tiny import (
    EOS,
    EXPERTS,
    GEMMA4_E,
    GPT_OSS,
    PAD,
    QWEN35_MOE,
    tiny_batch,
    tiny_learner,
    tiny_model,
)

COMMON = (
    "sampling.max_new_tokens=6",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup=0",
    "divergence.chunk=16",
    "teacher.rate=0.1",
)


@functools.cache
def compiled(*overrides, mesh=None, eos_ids=(EOS,), **changes):
    """Return (learner, initial state, update); tests with the same settings share one compilation."""
    learner, params = tiny_learner(*COMMON, *overrides, mesh=mesh, eos_ids=eos_ids, **changes)
    return learner, init_state(learner, params), make_update(learner)


def copied(state):
    """Return a copy of a state: an update donates its state."""
    return jax.tree.map(jnp.copy, state)


def setup(*overrides, **options):
    learner, state, update = compiled(*overrides, **options)
    return learner, copied(state), update


def run(*overrides, steps=3, **options):
    _, state, update = setup(*overrides, **options)
    history = []
    for step in range(steps):
        state, metrics = update(state, tiny_batch(seed=step))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history, update


def assert_close(tree, expected, **tolerances):
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerances)


@pytest.fixture(scope="module")
def single():
    """(state, metrics of each step, update) of three steps on one device."""
    return run()


# Meshes, micro-batches and compilations


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_same_on_every_mesh(single, mesh):
    state, history, _ = run(mesh=mesh)
    expected, expected_history, _ = single
    for ours, theirs in zip(history, expected_history, strict=True):
        np.testing.assert_array_equal(ours.rollout.tokens, theirs.rollout.tokens)
        np.testing.assert_allclose(ours.scalars["loss"], theirs.scalars["loss"], rtol=1e-5, atol=1e-5)
    assert_close(state, expected, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize(
    ("changes", "options", "frozen"),
    [
        (
            QWEN35_MOE | {"num_hidden_layers": 5},
            ("optimizer.freeze=[layers/delta_z, layers/router]",),
            {"delta_z", "router"},
        ),
        (GEMMA4_E, ("optimizer.weight_decay=0.1",), {"layer_scalar", "sharing_layer_scalar"}),
    ],
    ids=["qwen35_moe", "gemma4_e"],
)
def test_layers_of_several_kinds_train_alike_on_eight_devices_and_with_rematerialization(
    changes, options, frozen, monkeypatch
):
    """Two periods of layers, and a remaining one or two that share keys and values; a part is frozen, or a
    constant of the model.
    """
    monkeypatch.setattr(decode, "unrolls_layers", lambda *_: False)  # a scan over the periods compiles faster
    start = jax.device_get(setup(*options, **changes)[1])
    assert start.frozen["layers"].keys() == frozen
    state, expected, _ = run(*options, steps=2, **changes)
    _, history, _ = run(*options, "model.remat=full", mesh=(2, 2, 2), steps=2, **changes)
    for ours, theirs in zip(history, expected, strict=True):
        np.testing.assert_array_equal(ours.rollout.tokens, theirs.rollout.tokens)
        np.testing.assert_allclose(ours.scalars["loss"], theirs.scalars["loss"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.scalars["grad_norm"], theirs.scalars["grad_norm"], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, start.frozen, state.frozen)
    moved = jax.tree.map(lambda old, new: np.ptp(new - old) > 0, start.params, state.params)
    averaged = jax.tree.map(lambda old, new: np.ptp(new - old) > 0, start.teacher, state.teacher)
    assert all(jax.tree.leaves((moved, averaged)))


@pytest.mark.parametrize("changes", [EXPERTS, GPT_OSS], ids=["qwen3_moe", "gpt_oss"])
def test_experts_train_alike_on_eight_devices_and_in_micro_batches(changes):
    """Devices along `expert` hold different experts, and those along `tensor` parts of each."""
    _, expected, _ = run("objective.balance=0.01", steps=2, **changes)
    settings = ("objective.balance=0.01", "train.micro_batch=4")
    _, history, _ = run(*settings, mesh=(1, 2, 2, 2), steps=2, **changes)
    for ours, theirs in zip(history, expected, strict=True):
        np.testing.assert_array_equal(ours.rollout.tokens, theirs.rollout.tokens)
        for name in ("loss", "grad_norm", "router_entropy", "router_agreement", "router_load_max"):
            np.testing.assert_allclose(ours.scalars[name], theirs.scalars[name], rtol=1e-5, atol=1e-5)


def test_completions_that_the_rules_cannot_split_are_refused():
    rules = ("sharding.sequence=tensor", "sharding.vocab=null", "sampling.max_new_tokens=7")
    with pytest.raises(SdftError, match=r"completions: axis 'sequence' of size 7 .* 2 parts of .* tensor"):
        run(*rules, mesh=(2, 2, 2), steps=1)


def test_micro_batches_change_no_result(single):
    state, history, _ = run("train.micro_batch=2")
    assert history[-1].scalars["loss"] == pytest.approx(single[1][-1].scalars["loss"], rel=1e-5)
    np.testing.assert_allclose(history[0].divergence, single[1][0].divergence, atol=1e-5)
    assert_close(state.params, single[0].params, atol=1e-5, rtol=1e-5)


def test_compiles_once_per_shape_of_the_batch(single):
    assert single[2].jitted._cache_size() == 1
    _, state, update = setup()
    for prompt, teacher in [(6, 10), (8, 10), (6, 10), (8, 10)]:
        state, _ = update(state, tiny_batch(prompt=prompt, teacher=teacher))
    assert update is single[2]
    assert update.jitted._cache_size() == 2


def test_other_learning_rates_have_the_same_program():
    programs = []
    for rate in (1e-5, 3e-4):
        learner, _ = tiny_learner("train.method=sft", *COMMON, f"optimizer.learning_rate={rate}")
        lowered = make_update(learner).lower(abstract_state(learner), tiny_batch(completion=7))
        programs.append(lowered.as_text())
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    ("overrides", "mesh", "message"),
    [
        (["train.micro_batch=3"], (1, 1, 1), r"batch_size=8 is not divisible by train\.micro_batch=3"),
        (["train.micro_batch=4"], (8, 1, 1), r"micro_batch=4 .* 8 parts"),
        (["train.batch_size=12"], (8, 1, 1), r"batch_size=12 .* 8 parts"),
    ],
)
def test_batches_that_do_not_divide_are_refused(overrides, mesh, message):
    learner, _ = tiny_learner(*overrides, mesh=mesh)
    with pytest.raises(SdftError, match=message):
        make_update(learner)


# The state


def test_the_state_is_donated():
    _, state, update = setup()
    update(state, tiny_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.teacher, state.opt_state)))


def test_ema_follows_the_optimizer_inside_the_update():
    learner, state, update = setup()
    assert learner.config.teacher.rate == 0.1
    before = jax.device_get(state.teacher)
    state, _ = update(state, tiny_batch())
    after = jax.device_get(state)
    jax.tree.map(
        lambda old, new, student: np.testing.assert_allclose(new, 0.9 * old + 0.1 * student, atol=1e-6),
        before,
        after.teacher,
        after.params,
    )


def test_a_live_teacher_has_no_copy():
    _, state, update = setup("teacher.schedule=live")
    assert state.teacher == {}
    state, metrics = update(state, tiny_batch())
    assert np.isfinite(metrics.scalars["loss"])


def test_frozen_parameters_do_not_move():
    _, state, update = setup("optimizer.freeze=[embed, layers/q]")
    before = jax.device_get(state.frozen)
    state, _ = update(state, tiny_batch())
    assert set(before) == {"embed", "layers"}
    assert "embed" not in state.params
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.frozen))


def test_bfloat16_state_and_activations():
    learner, params = tiny_learner(*COMMON, "model.param_dtype=bfloat16")
    learner = dataclasses.replace(learner, model=dataclasses.replace(learner.model, compute_dtype="bfloat16"))
    state = init_state(learner, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    state, metrics = make_update(learner)(state, tiny_batch())
    assert jax.tree.leaves(state.params)[0].dtype == jnp.bfloat16
    assert jax.tree.leaves(state.teacher)[0].dtype == jnp.float32
    assert np.isfinite(metrics.scalars["loss"])
    assert metrics.scalars["importance_ratio"] == pytest.approx(1, abs=0.1)


# Losses and metrics


def test_importance_ratio_is_one(single):
    for metrics in single[1]:
        assert metrics.scalars["importance_ratio"] == pytest.approx(1, abs=1e-4)
        assert metrics.scalars["importance_max"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("setting", ["token", "sequence"])
def test_importance_of_the_same_policy_changes_no_loss(single, setting):
    _, history, _ = run(f"objective.importance={setting}", steps=1)
    assert history[0].scalars["loss"] == pytest.approx(single[1][0].scalars["loss"], rel=1e-4)


def test_equal_prompts_and_weights_have_zero_loss():
    _, state, update = setup()
    batch = tiny_batch()
    _, metrics = update(state, dataclasses.replace(batch, teacher_prompt=batch.prompt))
    assert abs(metrics.scalars["loss"]) < 1e-6
    assert metrics.scalars["grad_norm"] < 1e-5


def test_empty_masks_have_zero_loss_and_no_nan():
    _, state, update = setup("objective.skip_tokens=6")
    before = jax.device_get(state.params)
    state, metrics = update(state, tiny_batch())
    assert metrics.scalars["loss"] == 0
    assert metrics.scalars["grad_norm"] == 0
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.device_get(metrics.scalars)))
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))


def test_metrics_have_the_share_of_padding_in_the_prompts():
    _, state, update = setup()
    batch = tiny_batch()
    _, metrics = update(state, batch)
    masks = np.concatenate([batch.prompt.mask.ravel(), batch.teacher_prompt.mask.ravel()])
    np.testing.assert_allclose(metrics.scalars["prompt_padding"], 1 - masks.mean(), rtol=1e-6)


def test_rollouts_differ_from_step_to_step():
    """The weights and prompts are the same at steps 0 and 1."""
    _, state, update = setup()
    later = dataclasses.replace(copied(state), step=jnp.int32(1))
    first, second = (update(s, tiny_batch())[1].rollout.tokens for s in (state, later))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("mesh", "micro"), [(None, "null"), ((2, 2, 2), "4")], ids=str)
def test_completion_buckets_change_no_result(mesh, micro):
    """Completions end early, so that different batches use different buckets."""
    common, used = ("sampling.temperature=2.0", f"train.micro_batch={micro}"), set()
    (_, plain, update), (_, state, bucketed) = (
        setup(*common, *more, mesh=mesh, eos_ids=tuple(range(1, 20)))
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
    assert_close(state.params, plain.params, atol=1e-5)
    assert len(used) > 1, used


# The distillation loss


def options_of(learner):
    """Return the configured settings of the loss, as they are."""
    return LossOptions(learner.config.divergence, learner.config.objective)


def rows_of(batch, completion, mask, weights):
    return Rows(batch, Rollout(completion, mask, jnp.zeros(completion.shape)), mask, weights)


def test_alignment_computed_by_hand():
    """Prompts [_, 5, 6] and [7, 8, 9]; teacher prompts of 5 and 2 tokens; completions [10, 11] and [12].

    Without padding, token 10 is predicted after `5 6`, 11 after `5 6 10`, 12 after `7 8 9`; for the
    teacher, 10 after `20 21 22 23 24`, 11 after `20 21 22 23 24 10`, and 12 after `25 26`.
    """
    learner, params = tiny_learner(*COMMON, "divergence.alpha=1")
    model = learner.model
    batch = dataclasses.replace(
        jax.tree.map(jnp.asarray, tiny_batch(rows=2)),
        prompt=Sequences(jnp.array([[PAD, 5, 6], [7, 8, 9]]), jnp.array([[False, True, True], [True] * 3])),
        teacher_prompt=Sequences(
            jnp.array([[20, 21, 22, 23, 24], [PAD, PAD, PAD, 25, 26]]),
            jnp.array([[True] * 5, [False] * 3 + [True] * 2]),
        ),
    )
    completion = jnp.array([[10, 11], [12, PAD]])
    mask = jnp.array([[True, True], [True, False]])
    weights = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    rows = rows_of(batch, completion, mask, weights)
    _, (stats, _) = jax.jit(lambda p, rows: distillation_loss(model, p, p, rows, options_of(learner)))(
        params, rows
    )
    logits = jax.jit(model.logits)

    def log_probs(*tokens):
        """Return the distribution after these tokens; right-padded, so that all cases have one shape."""
        padded = np.array([[*tokens, *[PAD] * (6 - len(tokens))]])
        scores = logits(params, Sequences(padded, padded != PAD))
        return np.float64(jax.nn.log_softmax(scores[0, len(tokens) - 1]))

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


def ragged_completions():
    """Return (tokens, mask, weights) of 0 to 6 tokens per row, of which the first two carry no loss."""
    tokens = np.random.default_rng(1).integers(2, 32, size=(8, 6)).astype(np.int32)
    mask = np.arange(6)[None, :] < np.array([[6], [5], [4], [3], [2], [1], [0], [6]])
    return (
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jnp.asarray(mask & (np.arange(6)[None, :] >= 2), jnp.float32),
    )


def test_masked_tokens_have_no_gradient():
    learner, params = tiny_learner(*COMMON)
    model, options = learner.model, learner.config.divergence
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    completion, mask, weights = ragged_completions()
    head = model.head(params)

    @jax.jit
    def gradient(shift):
        def loss(shift):
            hidden = model.completion_hidden(params, batch.prompt, Sequences(completion, mask))
            student = FactoredLogits(hidden + shift, head)
            teacher = FactoredLogits(0.5 * jax.lax.stop_gradient(hidden), head)
            return divergence(student, teacher, completion, weights, options, single_device())[0]

        return jax.grad(loss)(shift)

    gradients, used = np.asarray(gradient(jnp.zeros((8, 6, 32)))), np.asarray(weights) > 0
    assert np.all(gradients[~used] == 0)
    assert np.all(np.abs(gradients[used]).max(-1) > 0)


def test_the_tokens_in_the_padding_have_no_effect():
    learner, params = tiny_learner(*COMMON)
    options = options_of(learner)
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    completion, mask, weights = ragged_completions()
    student = jax.tree.map(lambda p: p * 0.9, params)

    @jax.jit
    def gradients(token):
        def padded_with_token(sequences):
            return dataclasses.replace(sequences, tokens=jnp.where(sequences.mask, sequences.tokens, token))

        other = dataclasses.replace(
            batch,
            prompt=padded_with_token(batch.prompt),
            teacher_prompt=padded_with_token(batch.teacher_prompt),
        )
        rows = rows_of(other, jnp.where(mask, completion, token), mask, weights)
        return jax.value_and_grad(lambda p: distillation_loss(learner.model, p, params, rows, options)[0])(
            student
        )

    jax.tree.map(np.testing.assert_array_equal, gradients(3), gradients(17))


@pytest.mark.parametrize(
    ("method", "alpha", "importance"),
    [("sdft", 0.5, "token"), ("reinvoke", 1.0, "token"), ("offline_kl", 0.5, "log")],
)
def test_a_phase_fixes_some_settings_of_its_loss(method, alpha, importance):
    settings = ("divergence.alpha=0.5", "divergence.temperature=2", "objective.importance=token")
    learner, _ = tiny_learner(*settings, f"train.method={method}", "data.general=unused")
    assert loss_options(learner, learner.config.method.phases[-1]) == LossOptions(
        DivergenceConfig(alpha=alpha, temperature=2), ObjectiveConfig(importance=importance)
    )


# SFT + re-invoke: imitation of targets, then distillation of the initial model on general prompts

TARGETS = tiny_batch(completion=7)
GENERAL = dataclasses.replace(
    tiny_batch(seed=1), teacher_prompt=Sequences(np.zeros((8, 0), np.int32), np.zeros((8, 0), bool))
)
FAST = ("optimizer.learning_rate=1e-2", "optimizer.clip=0", "data.general=unused")


@pytest.fixture(scope="module")
def phases():
    """(state, metrics) after a batch with targets, and after a batch of general prompts that follows it."""
    _, state, update = setup("train.method=reinvoke", *FAST, "divergence.alpha=0")
    first = update(state, TARGETS)
    second = update(copied(first[0]), GENERAL)
    return first, jax.device_get(second)


def test_the_first_phase_of_reinvoke_is_sft(phases):
    _, state, update = setup("train.method=sft", *FAST)
    expected, expected_metrics = update(state, TARGETS)
    state, metrics = phases[0]
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, metrics, expected_metrics)


def test_the_second_phase_of_reinvoke_is_on_policy_distillation_of_the_initial_model(phases):
    """The reference is SDFT by the reverse KL, with a frozen teacher that has the student's prompt."""
    _, _, update = setup(*FAST, "teacher.schedule=frozen", "divergence.alpha=1")
    same = dataclasses.replace(GENERAL, teacher_prompt=GENERAL.prompt)
    expected, expected_metrics = jax.device_get(update(copied(phases[0][0]), same))
    state, metrics = phases[1]
    assert metrics.scalars["loss"] > 1e-3
    np.testing.assert_array_equal(metrics.rollout.tokens, expected_metrics.rollout.tokens)
    assert_close(state, expected, atol=1e-6, rtol=1e-5)
    _, initial = tiny_model()
    jax.tree.map(np.testing.assert_array_equal, state.teacher, initial)


def test_the_second_phase_of_reinvoke_does_not_move_the_initial_model():
    _, state, update = setup("train.method=reinvoke", *FAST, "divergence.alpha=0")
    _, metrics = update(state, GENERAL)
    assert abs(metrics.scalars["loss"]) < 1e-6
    assert metrics.scalars["grad_norm"] < 1e-5


def test_each_phase_of_reinvoke_compiles_once(phases):
    _, state, update = setup("train.method=reinvoke", *FAST, "divergence.alpha=0")
    for batch in (TARGETS, GENERAL, TARGETS, GENERAL):
        state, _ = update(state, batch)
    assert update.jitted._cache_size() == 2


def test_reinvoke_is_the_same_on_eight_devices(phases):
    _, state, update = setup("train.method=reinvoke", *FAST, mesh=(2, 2, 2))
    before = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), jax.device_get(phases[0][0]), state)
    state, metrics = update(before, GENERAL)
    expected, expected_metrics = phases[1]
    np.testing.assert_array_equal(metrics.rollout.tokens, expected_metrics.rollout.tokens)
    assert_close(state.params, expected.params, atol=1e-4, rtol=1e-4)


# Offline distillation: samples of the initial teacher, by cross-entropy or by divergence

BATCH = tiny_batch()
SKIPPED = 1
OFFLINE = (
    "optimizer.clip=0",
    f"objective.skip_tokens={SKIPPED}",
    "objective.importance=sequence",
    "teacher.schedule=ema",
)


def offline(method, mesh=None):
    """Return (learner, state, update); the student differs from the teacher, as after some steps."""
    learner, state, update = setup(f"train.method={method}", *OFFLINE, mesh=mesh)
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: 0.9 * p, state.params))
    return learner, state, update


def run_offline(method, batch=BATCH, mesh=None, step=0):
    _, state, update = offline(method, mesh)
    return jax.device_get(update(dataclasses.replace(state, step=jnp.int32(step)), batch))


@pytest.fixture(scope="module")
def imitated():
    return run_offline("offline")


@pytest.fixture(scope="module")
def distilled():
    return run_offline("offline_kl")


def test_offline_completions_are_samples_of_the_initial_teacher(imitated, distilled):
    learner, _, _ = offline("offline")
    seed = jax.random.key(learner.config.train.seed, impl="threefry2x32")
    keys = jnp.stack([jax.random.fold_in(seed, row) for row in range(8)])
    expected = generate(*tiny_model(), BATCH.teacher_prompt, keys, learner.config.sampling, learner.stop)
    assert len(np.unique(expected.tokens, axis=0)) > 4
    for _, metrics in (imitated, distilled):
        np.testing.assert_array_equal(metrics.rollout.tokens, expected.tokens)
        np.testing.assert_array_equal(metrics.rollout.mask, expected.mask)
    np.testing.assert_allclose(distilled[1].rollout.logprobs, expected.logprobs, atol=1e-5)


def test_every_pass_over_the_data_has_the_same_offline_completions(imitated):
    """The second pass is at another step, and has the rows in another order."""
    order = np.random.default_rng(0).permutation(8)
    again = run_offline("offline", jax.tree.map(lambda x: x[order], BATCH), step=5)
    np.testing.assert_array_equal(again[1].rollout.tokens, imitated[1].rollout.tokens[order])


def offline_mask(rollout):
    return rollout.mask & (np.arange(6) >= SKIPPED)


def plain_cross_entropy(params, model, rollout):
    """Return the mean over the tokens that carry loss, then over rows, from whole logits."""
    both = Sequences(
        jnp.concatenate([BATCH.prompt.tokens, rollout.tokens], axis=1),
        jnp.concatenate([BATCH.prompt.mask, rollout.mask], axis=1),
    )
    logits = model.logits(params, both)[:, BATCH.prompt.tokens.shape[1] - 1 : -1]
    target = jnp.asarray(rollout.tokens)[..., None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
    counted = offline_mask(rollout)
    return jnp.mean(jnp.where(counted, -log_p, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))


def divergence_loss(params, model, rollout):
    """Return the full reverse KL from the teacher given its own prompt, without importance ratios."""
    learner, state, _ = offline("offline_kl")
    objective = dataclasses.replace(learner.config.objective, importance="log")
    mask = jnp.asarray(offline_mask(rollout))
    weights = aggregation_weights(mask, jnp.asarray(BATCH.weight), objective)
    rows = Rows(*jax.tree.map(jnp.asarray, (BATCH, rollout)), mask, weights)
    options = LossOptions(learner.config.divergence, objective)
    return distillation_loss(model, params, state.teacher, rows, options)[0]


@pytest.mark.parametrize(
    ("result", "loss"), [("imitated", plain_cross_entropy), ("distilled", divergence_loss)]
)
def test_loss_and_gradient_of_offline_distillation(request, result, loss):
    after, metrics = request.getfixturevalue(result)
    learner, state, _ = offline("offline_kl")
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, learner.model, metrics.rollout)))(
        state.params
    )
    assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-4)
    (moment,) = [
        x.mu for x in jax.tree.leaves(after.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")
    ]
    for ours, theirs in zip(jax.tree.leaves(moment), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours / 0.1, theirs, atol=5e-5, rtol=2e-3)


def test_offline_divergence_is_the_reverse_kl_from_the_teacher(distilled):
    """The reference is the reverse KL of every token in float64 NumPy."""
    _, metrics = distilled
    learner, state, _ = offline("offline_kl")
    model, completion = learner.model, jax.tree.map(jnp.asarray, metrics.rollout.completion)

    def log_probs(params, prompt):
        prompt = jax.tree.map(jnp.asarray, prompt)
        hidden = jax.jit(model.completion_hidden)(params, prompt, completion)
        logits = np.float64(jnp.einsum("btd,vd->btv", hidden, model.head(params)))
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    student = log_probs(state.params, BATCH.prompt)
    teacher = log_probs(state.teacher, BATCH.teacher_prompt)
    expected = (np.exp(student) * (student - teacher)).sum(axis=-1)
    mask = metrics.rollout.mask
    np.testing.assert_allclose(metrics.divergence[mask], expected[mask], atol=1e-3, rtol=1e-3)


def test_the_tokens_in_the_padding_have_no_effect_on_an_offline_update(imitated):
    def padded_with(sequences, token):
        tokens = np.where(sequences.mask, sequences.tokens, token).astype(np.int32)
        return Sequences(tokens, sequences.mask)

    other = dataclasses.replace(
        BATCH,
        prompt=padded_with(BATCH.prompt, 7),
        teacher_prompt=padded_with(BATCH.teacher_prompt, 9),
    )
    jax.tree.map(np.testing.assert_array_equal, run_offline("offline", other), imitated)


def test_offline_distillation_is_the_same_on_eight_devices(distilled):
    state, metrics = run_offline("offline_kl", mesh=(2, 2, 2))
    np.testing.assert_array_equal(metrics.rollout.tokens, distilled[1].rollout.tokens)
    assert metrics.scalars["loss"] == pytest.approx(distilled[1].scalars["loss"], rel=1e-4)
    assert_close(state, distilled[0], atol=1e-4, rtol=1e-4)


# Other methods


@pytest.mark.parametrize("completion", [0, 7])
def test_the_oracle_has_no_update(completion):
    learner, _ = tiny_learner("train.method=oracle")
    update = make_update(learner)
    with pytest.raises(SdftError, match=r"train\.method=oracle does not train: there is no update for it"):
        update.lower(abstract_state(learner), tiny_batch(completion=completion))


@pytest.mark.parametrize("method", ["joint", "cpt"])
def test_methods_that_differ_from_sft_in_their_data_only_have_its_program(method):
    programs = []
    for name in ("sft", method):
        learner, _ = tiny_learner(*COMMON, f"train.method={name}")
        lowered = make_update(learner).lower(abstract_state(learner), TARGETS)
        programs.append(lowered.as_text())
    assert programs[0] == programs[1]


# Adapters

LORA = ("lora.rank=4", "optimizer.learning_rate=1e-2")
OUTER = (*LORA, "lora.targets=[v,embed,head]")


@pytest.fixture(scope="module")
def with_adapters():
    """(state, metrics of each step, update) of three steps with adapters on one device."""
    return run(*LORA)


@pytest.mark.parametrize("settings", [LORA, OUTER], ids=["projections", "embedding and head"])
def test_adapters_are_the_same_on_eight_devices(settings):
    state, history, _ = run(*settings, mesh=(2, 2, 2))
    expected, expected_history, _ = run(*settings)
    for ours, theirs in zip(history, expected_history, strict=True):
        np.testing.assert_array_equal(ours.rollout.tokens, theirs.rollout.tokens)
        np.testing.assert_allclose(ours.scalars["loss"], theirs.scalars["loss"], rtol=1e-5, atol=1e-5)
    assert_close(state.params, expected.params, atol=1e-5, rtol=1e-5)


def test_only_adapters_train(with_adapters):
    """The base is bit-identical, and the moments and the teacher's EMA are those of the adapters."""
    state, _, _ = with_adapters
    _, initial, _ = compiled(*LORA)
    assert all(name.endswith(("_lora_a", "_lora_b")) for name in state.params["layers"])
    assert (set(state.params), len(state.params["layers"])) == ({"layers"}, 14)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.frozen, jax.device_get(initial.frozen)))
    size = sum(x.size for x in jax.tree.leaves(state.params))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert (moments, sum(x.size for x in jax.tree.leaves(state.teacher))) == (2 * size, size)
    for name, trained in state.params["layers"].items():
        assert not np.array_equal(trained, initial.params["layers"][name]), name


def test_adapters_of_embedding_and_head_train():
    state, _, _ = run(*OUTER)
    _, initial, _ = compiled(*OUTER)
    names = {f"{name}_lora_{factor}" for name in ("embed", "head") for factor in "ab"}
    assert (set(state.params), set(state.params["layers"])) == (
        {*names, "layers"},
        {"v_lora_a", "v_lora_b"},
    )
    for name in names:
        assert not np.array_equal(state.params[name], initial.params[name]), name
    for name in ("embed", "head"):
        np.testing.assert_array_equal(state.frozen[name], initial.frozen[name])


def test_the_ema_starts_from_the_students_own_adapters():
    _, state, _ = setup(*LORA)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.teacher, state.params))
    assert np.abs(state.teacher["layers"]["q_lora_a"]).max() > 0


def test_a_frozen_teacher_is_the_base_without_a_copy():
    """Its program has no more arguments and no more temporary memory than that of a live teacher."""
    memory = {}
    for schedule in ("frozen", "live"):
        learner, state, update = setup(*LORA, f"teacher.schedule={schedule}")
        assert state.teacher == {}
        memory[schedule] = update.lower(abstract_state(learner), tiny_batch()).compile().memory_analysis()
    frozen, live = memory["frozen"], memory["live"]
    assert frozen.argument_size_in_bytes == live.argument_size_in_bytes
    assert frozen.temp_size_in_bytes <= live.temp_size_in_bytes


def test_a_frozen_teacher_scores_with_the_base():
    """With one prompt for both roles, the loss is 0 before the first step, and not after it."""
    _, state, update = setup(*LORA, "teacher.schedule=frozen")
    batch = tiny_batch()
    batch = dataclasses.replace(batch, teacher_prompt=batch.prompt)
    before = update(copied(state), batch)[1].scalars["loss"]
    state, _ = update(state, tiny_batch())
    assert float(before) < 1e-6
    assert float(update(state, batch)[1].scalars["loss"]) > 1e-3


@pytest.mark.parametrize("method", ["sft", "offline_kl"])
def test_other_methods_train_adapters(method):
    _, state, update = setup(*LORA, f"train.method={method}")
    before = jax.device_get(state)
    state, metrics = update(state, tiny_batch(completion=5 if method == "sft" else 0))
    assert metrics.scalars["grad_norm"] > 0
    assert not np.array_equal(state.params["layers"]["q_lora_b"], before.params["layers"]["q_lora_b"])
    assert jax.tree.all(jax.tree.map(np.array_equal, state.frozen, before.frozen))
