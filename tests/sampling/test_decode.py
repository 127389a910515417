"""Greedy equals transformers, samples follow the exact distribution, rows do not depend on each other."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_sampling_fixture import CASES, LENGTH, PAD, PATH, eos_from, prompts, transformers_greedy
from scipy.stats import chisquare

import sdft_jax.sampling.decode as sampling_module
from make_fixtures import DIRECTORY
from sdft_jax.config.settings import SamplingConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model
from sdft_jax.plan.hlo import collectives
from sdft_jax.sampling.decode import compiled_sample, generate, row_keys, sample, stages
from sdft_jax.sampling.layout import UNROLLED, unrolled
from sdft_jax.sampling.token_choice import first_largest, truncate
from sdft_jax.sharding import Sharding, make_mesh, tree_shardings
from tiny import EOS, ragged, tiny_model

KEY = jax.random.key(0)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_first_largest_is_the_argmax():
    rng = np.random.default_rng()
    for size in (1, 2, 31, 4096):
        x = rng.integers(-3, 4, (16, size)).astype(np.float32)  # with many ties
        x[0], x[1, : size // 2], x[2, -1] = -np.inf, -np.inf, np.inf
        np.testing.assert_array_equal(first_largest(jnp.asarray(x)), np.argmax(x, axis=-1))


# Greedy


def assert_greedy(model, params, expected, eos_ids):
    tokens, mask = prompts()
    rollout = generate(
        model,
        params,
        tokens,
        mask,
        key=KEY,
        max_new_tokens=LENGTH,
        temperature=0.0,
        eos_ids=eos_ids,
        pad_id=PAD,
    )
    np.testing.assert_array_equal(rollout.tokens, expected)
    lengths = [next((i + 1 for i, t in enumerate(row) if t in eos_ids), LENGTH) for row in expected]
    assert min(lengths) < LENGTH == max(lengths)
    np.testing.assert_array_equal(np.sum(rollout.mask, axis=1), lengths)


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_what_transformers_generated(case):
    stored = np.load(PATH)
    model, params = load_model(DIRECTORY / case)
    assert_greedy(model, params, stored[f"{case}.completion"], stored[f"{case}.eos"].tolist())


@pytest.mark.parametrize("name", ["Qwen3", "Llama"])
def test_greedy_equals_transformers_on_a_new_model(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        initializer_range=0.3,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    eos_ids = eos_from(transformers_greedy(theirs, *prompts(), ()))
    assert_greedy(*load_model(tmp_path), transformers_greedy(theirs, *prompts(), eos_ids), eos_ids)


# Truncation

CUTS = [
    dict(),
    dict(top_k=3),
    dict(top_k=1000),
    dict(top_p=0.8),
    dict(top_p=1e-6),
    dict(min_p=0.1),
    dict(min_p=1.0),
    dict(temperature=0.5, top_p=0.8),
    dict(top_k=10, top_p=0.7),
    dict(top_k=1000, top_p=0.5),
    dict(top_p=0.9, min_p=0.1),
    dict(temperature=0.7, top_k=20, top_p=0.95, min_p=0.05),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_keeps_what_the_processors_of_transformers_keep(cut):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    sampling = SamplingConfig(**cut)
    logits = 3 * np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32)
    scores = processors.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        scores = processors.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = processors.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = processors.MinPLogitsWarper(sampling.min_p)(None, scores)
    kept = truncate(jnp.asarray(logits) / sampling.temperature, sampling)
    np.testing.assert_allclose(kept, scores.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("cut", "count"),
    [
        (dict(), 5),
        (dict(top_k=2), 2),
        (dict(top_k=9), 5),
        (dict(top_p=0.7), 2),
        (dict(top_p=0.8), 3),
        (dict(top_p=0.01), 1),
        (dict(min_p=0.2), 3),
        (dict(min_p=1.0), 1),
        # The first three renormalised are 0.56, 0.28, 0.17, of which two reach 0.8.
        (dict(top_k=3, top_p=0.8), 2),
        # min-p first would leave three, renormalised as above, and top-p then two.
        (dict(top_p=0.8, min_p=0.2), 3),
        # Squared and renormalised: 0.73, 0.18, ...
        (dict(temperature=0.5, top_p=0.7), 1),
        (dict(temperature=0.5, min_p=0.2), 2),
    ],
    ids=str,
)
def test_truncation_worked_by_hand(cut, count):
    """Probabilities 0.5, 0.25, 0.15, 0.07 and 0.03, in one row mixed up."""
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.07, 0.03], [0.07, 0.5, 0.03, 0.15, 0.25]], np.float32))
    sampling = SamplingConfig(**cut)
    kept = np.isfinite(truncate(jnp.asarray(logits) / sampling.temperature, sampling))
    np.testing.assert_array_equal(kept, logits >= np.sort(logits)[:, ::-1][:, [count - 1]])


def test_vocabulary_is_ranked_for_top_k_and_top_p_only():
    model, params = tiny_model()
    arguments = (model, params, *ragged(np.random.default_rng(0), 2, 3), row_keys(KEY, 2))

    def ranks(**cut):
        text = compiled_sample.lower(*arguments, SamplingConfig(max_new_tokens=2, **cut), (EOS,), 0).as_text()
        return "chlo.top_k" in text or "stablehlo.sort" in text

    assert not ranks(min_p=0.1)
    assert ranks(top_k=3)
    assert ranks(top_p=0.9)


# Distribution


@pytest.mark.parametrize("cut", [dict(), dict(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)], ids=str)
def test_frequencies_follow_the_exact_probabilities(cut):
    """All completions of two tokens over a vocabulary of 8, one of which is EOS; chi-square at 0.1 %."""
    vocabulary, eos, rows = 8, 1, 4096
    model, params = tiny_model(scale=3.0, vocab_size=vocabulary)
    prompt = np.array([2, 5, 3])
    logits = jax.jit(model.logits)
    after_one = np.array([[*prompt, first] for first in range(vocabulary)])
    scores = np.asarray(logits(params, after_one, np.ones_like(after_one, bool)))
    sampling = SamplingConfig(max_new_tokens=2, **cut)
    exact = np.exp(log_softmax(keep_by_definition(scores[:, 2:] / sampling.temperature, sampling)))
    expected = exact[0, 0][:, None] * exact[:, 1]  # [first, second]
    expected[eos] = np.where(np.arange(vocabulary) == 0, exact[0, 0, eos], 0)  # padded with 0

    tokens = np.tile(prompt, (rows, 1))
    rollout = generate(
        model,
        params,
        tokens,
        np.ones_like(tokens, bool),
        key=jax.random.key(3),
        max_new_tokens=2,
        eos_ids=(eos,),
        pad_id=0,
        **cut,
    )
    observed = np.zeros((vocabulary, vocabulary))
    np.add.at(observed, tuple(np.asarray(rollout.tokens).T), 1)
    assert observed[expected == 0].sum() == 0
    rare = expected * rows < 5  # too few for the test: counted together
    counts, means = ([*x[~rare], x[rare].sum()] for x in (observed, expected * rows))
    if means[-1] == 0:
        counts, means = counts[:-1], means[:-1]
    assert len(counts) > 8
    assert chisquare(counts, means).pvalue > 1e-3


def keep_by_definition(scores, sampling):
    """Truncated scores, one distribution at a time, in the words of the definitions."""
    scores = np.array(scores, np.float64)
    for row in scores.reshape(-1, scores.shape[-1]):
        order = np.argsort(-row)
        row[order[sampling.top_k or len(row) :]] = -np.inf
        probability = np.exp(log_softmax(row))
        cut = next(i for i in range(len(row)) if probability[order[: i + 1]].sum() >= sampling.top_p - 1e-12)
        row[order[cut + 1 :]] = -np.inf
        row[np.exp(row) < sampling.min_p * np.exp(row.max())] = -np.inf
    return scores


def test_log_probabilities_are_the_untruncated_students(tiny):
    model, params, tokens, mask = tiny
    cut = dict(temperature=0.5, top_k=4, top_p=0.9)
    rollout = generate(model, params, tokens, mask, key=KEY, max_new_tokens=6, eos_ids=range(4, 12), **cut)
    both = np.concatenate([tokens, rollout.tokens], axis=1), np.concatenate([mask, rollout.mask], axis=1)
    logits = jax.jit(model.logits)(params, *both)[:, tokens.shape[1] - 1 : -1]
    expected = np.take_along_axis(log_softmax(logits), np.asarray(rollout.tokens)[..., None], axis=2)[..., 0]
    generated = np.asarray(rollout.mask)
    assert not generated.all()
    np.testing.assert_allclose(rollout.logprobs, np.where(generated, expected, 0), atol=1e-4)
    assert np.all(np.asarray(rollout.logprobs)[~generated] == 0)


# Rows, ends and meshes


@pytest.fixture(scope="module")
def tiny():
    model, params = tiny_model()
    return model, params, *ragged(np.random.default_rng(0), 8, 6)


SETTINGS = dict(max_new_tokens=8, temperature=1.0)


@pytest.fixture(scope="module")
def endless(tiny):
    """Completions of `tiny` that no EOS ends."""
    return generate(*tiny, key=KEY, **SETTINGS)


def cut_at(endless, eos_ids):
    """What EOS makes of an endless rollout, by hand: (tokens, mask)."""
    tokens = np.array(endless.tokens)
    mask = np.ones_like(tokens, bool)
    for row in range(len(tokens)):
        ends = [i for i, token in enumerate(tokens[row]) if token in eos_ids]
        if ends:
            mask[row, ends[0] + 1 :] = False
    return np.where(mask, tokens, 0), mask


def test_without_eos_every_position_is_filled(endless):
    assert np.all(endless.mask)
    assert np.all(np.asarray(endless.logprobs) < 0)


def test_mask_goes_through_the_first_eos_and_padding_follows(tiny, endless):
    eos_ids = tuple(int(t) for t in np.asarray(endless.tokens)[[0, 1, 2], [0, 3, 7]])
    rollout = generate(*tiny, key=KEY, eos_ids=eos_ids, **SETTINGS)
    tokens, mask = cut_at(endless, eos_ids)
    lengths = mask.sum(1)
    assert lengths[0] == 1
    assert lengths.max() == 8
    np.testing.assert_array_equal(rollout.tokens, tokens)
    np.testing.assert_array_equal(rollout.mask, mask)
    np.testing.assert_allclose(rollout.logprobs, np.where(mask, endless.logprobs, 0), atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 128])
@pytest.mark.parametrize("eos_ids", [range(32), range(8, 24), ()], ids=["at once", "soon", "never"])
def test_stops_decoding_when_every_row_is_done(tiny, endless, eos_ids, slots, monkeypatch):
    monkeypatch.setattr(sampling_module, "FIRST_SLOTS", slots)
    steps = []
    decode = Model.decode

    def counted(self, *arguments):
        jax.debug.callback(lambda: steps.append(1))
        return decode(self, *arguments)

    monkeypatch.setattr(Model, "decode", counted)
    model, *arrays = tiny
    sampling = SamplingConfig(**SETTINGS)
    rollout = jax.jit(lambda *a: sample(model, *a, row_keys(KEY, 8), sampling, tuple(eos_ids), 0))(*arrays)
    jax.block_until_ready(rollout)
    jax.effects_barrier()
    _, mask = cut_at(endless, eos_ids)
    np.testing.assert_array_equal(rollout.mask, mask)
    assert len(steps) == mask.sum(1).max() - 1  # the prefill gives the first token


def test_stages_double_up_to_the_longest_completion():
    assert stages(1) == (1,)
    assert stages(128) == (128,)
    assert stages(129) == (128, 129)
    assert stages(1000) == (128, 256, 512, 1000)


@pytest.mark.parametrize(
    ("platform", "layers", "expected"),
    [("gpu", 80, True), ("tpu", 2, False), ("cpu", UNROLLED, True), ("cpu", UNROLLED + 1, False)],
)
def test_layers_are_scanned_where_that_copies_nothing_or_compiling_would_take_long(
    platform, layers, expected
):
    assert unrolled(platform, layers) == expected


@pytest.mark.parametrize("layers", [2, UNROLLED + 1], ids=["layer by layer", "scanned"])
@pytest.mark.parametrize("mesh", [None, (1, 4, 2)])
def test_a_cache_that_grows_changes_nothing(layers, mesh, monkeypatch):
    sharding = mesh and Sharding(make_mesh(*mesh))
    model, params = tiny_model(sharding, scale=3.0, num_hidden_layers=layers)
    arrays, sampling = ragged(np.random.default_rng(), 8, 6), SamplingConfig(max_new_tokens=9)
    found = []
    for slots in (128, 2):
        monkeypatch.setattr(sampling_module, "FIRST_SLOTS", slots)
        run = jax.jit(lambda *a: sample(model, *a, row_keys(KEY, 8), sampling, (EOS,), 0))
        found.append((run(params, *arrays), run.lower(params, *arrays).as_text()))
    (whole, _), (grown, text) = found
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_allclose(grown.logprobs, whole.logprobs, atol=1e-5)
    read = {
        int(slots) for slots in re.findall(r"\(.*tensor<8x2x8x(\d+)xf32>\) -> tensor<8x2x2x\1xf32>", text)
    }
    assert mesh or read == {6 + 2, 6 + 4, 6 + 8, 6 + 9}  # slots of the keys that scores are of


def test_rows_depend_on_neither_padding_nor_neighbours(tiny, endless):
    model, params, tokens, mask = tiny
    others, others_mask = ragged(np.random.default_rng(9), 5, 11)
    wider = np.pad(tokens, [(0, 0), (5, 0)], constant_values=7)
    keys = row_keys(KEY, 8)
    order = np.array([6, 1, 3])
    rollout = generate(
        model,
        params,
        np.concatenate([others, wider[order]]),
        np.concatenate([others_mask, np.pad(mask, [(0, 0), (5, 0)])[order]]),
        key=jnp.concatenate([row_keys(jax.random.key(1), 5), keys[order]]),
        **SETTINGS,
    )
    np.testing.assert_array_equal(rollout.tokens[5:], endless.tokens[order])
    np.testing.assert_allclose(rollout.logprobs[5:], endless.logprobs[order], atol=1e-5)


def test_batch_of_one(tiny, endless):
    model, params, tokens, mask = tiny
    rollout = generate(model, params, tokens[:1], mask[:1], key=KEY, **SETTINGS)
    np.testing.assert_array_equal(rollout.tokens, endless.tokens[:1])


def test_same_key_same_completion_and_other_key_another(tiny, endless):
    same = generate(*tiny, key=jax.random.key_data(KEY), **SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, same, endless)
    other = generate(*tiny, key=jax.random.key(1), **SETTINGS)
    assert np.mean(np.asarray(other.tokens) == np.asarray(endless.tokens)) < 0.5


def test_inside_an_outer_jit(tiny, endless):
    model, *arrays = tiny
    rollout = jax.jit(lambda key, *a: generate(model, *a, key=key, **SETTINGS))(KEY, *arrays)
    np.testing.assert_array_equal(rollout.tokens, endless.tokens)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=["fsdp", "data x fsdp x tensor"])
@pytest.mark.parametrize("layers", [2, UNROLLED + 1], ids=["layer by layer", "scan"])
def test_weights_move_before_the_loop_and_never_in_it(tied, shape, layers):
    """A tied embedding once was split again inside the loop, and gathered for the head at every token."""
    sharding = Sharding(make_mesh(*shape))
    model, _ = tiny_model(sharding, tie_word_embeddings=tied, num_hidden_layers=layers)
    shapes = model.abstract_params()
    params = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        tree_shardings(sharding, model.logical_axes(), shapes),
    )
    prompt = jax.ShapeDtypeStruct((8, 6), jnp.int32, sharding=sharding.named("batch"))
    mask = jax.ShapeDtypeStruct((8, 6), bool, sharding=sharding.named("batch"))
    keys = jax.eval_shape(lambda: row_keys(KEY, 8))
    sampling = SamplingConfig(max_new_tokens=5)
    text = compiled_sample.lower(model, params, prompt, mask, keys, sampling, (EOS,), PAD).compile().as_text()
    found = collectives(text)
    before = sum(x.bytes for x in found if "decode/while" not in x.scope)
    assert before > 32 * 32 * 4 / 2  # at least most of the embedding
    per_token = max((x.bytes / x.times for x in found if "decode/while" in x.scope), default=0)
    assert per_token < 2 * 8 * 32 * 4  # a batch of hidden states or logits, there and back


def test_a_deep_model_is_scanned_and_samples_the_same_on_a_mesh():
    sharding = Sharding(make_mesh(2, 2, 2))
    model, params = tiny_model(num_hidden_layers=UNROLLED + 1)
    tokens, mask = ragged(np.random.default_rng(), 8, 6)
    alone = generate(model, params, tokens, mask, key=KEY, **SETTINGS)
    spread = dataclasses.replace(model, sharding=sharding)
    params = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    rollout = generate(spread, params, tokens, mask, key=KEY, **SETTINGS)
    np.testing.assert_allclose(rollout.logprobs[:, 0], alone.logprobs[:, 0], atol=1e-4)
    assert np.mean(rollout.tokens == alone.tokens) > 0.9  # rounding may flip a draw, and all after it


def test_same_on_a_mesh(tiny, endless):
    model, params, tokens, mask = tiny
    sharding = Sharding(make_mesh(2, 2, 2))
    model = dataclasses.replace(model, sharding=sharding)
    params = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    rollout = generate(model, params, tokens, mask, key=KEY, **SETTINGS)
    np.testing.assert_array_equal(rollout.tokens, endless.tokens)
    np.testing.assert_allclose(rollout.logprobs, endless.logprobs, atol=1e-4)


def test_settings_out_of_range_are_refused():
    with pytest.raises(SdftError, match=r"sampling.top_p=0.0"):
        generate(
            *tiny_model(),
            np.ones((1, 2), np.int32),
            np.ones((1, 2), bool),
            key=jax.random.key(0),
            max_new_tokens=1,
            top_p=0.0,
        )


def test_one_eos_id_may_be_a_number():
    model, params = tiny_model()
    tokens, mask = np.full((2, 3), 5, np.int32), np.ones((2, 3), bool)
    settings = dict(key=jax.random.key(0), max_new_tokens=4)
    one, several = (generate(model, params, tokens, mask, eos_ids=eos, **settings) for eos in (EOS, [EOS]))
    np.testing.assert_array_equal(one.mask, several.mask)
