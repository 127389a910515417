"""The decode loop: greedy completions equal those of transformers, samples have the exact distribution, and
the rows of a batch do not depend on each other.
"""

import dataclasses
import importlib.util
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_sampling_fixture import CASES, LENGTH, PAD, PATH, eos_from, prompts, transformers_greedy
from scipy.stats import chisquare

import sdft_jax.sampling.decode as decode_module
from make_fixtures import CASES as FIXTURES
from make_fixtures import DIRECTORY
from sdft_jax.config.settings import LoraConfig, SamplingConfig
from sdft_jax.kernels.platforms import UNROLLED
from sdft_jax.models import Model, architecture_from_dict, load_model
from sdft_jax.models.head import head_logits
from sdft_jax.sampling import cache_sizes, compiled_sample, generate, row_keys, sample
from sdft_jax.sharding import Sharding, make_mesh, tree_shardings
from sdft_jax.types import NO_STOP, Sequences, StopTokens
from tiny import EOS, adapted, merged, ragged, tiny_model

KEY = jax.random.key(0)
SAMPLING = SamplingConfig(max_new_tokens=8, temperature=1.0)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# Greedy decoding


def assert_greedy(model, params, expected, eos_ids):
    sampling = SamplingConfig(max_new_tokens=LENGTH, temperature=0.0)
    rollout = generate(model, params, Sequences(*prompts()), KEY, sampling, StopTokens(tuple(eos_ids), PAD))
    np.testing.assert_array_equal(rollout.tokens, expected)
    lengths = [next((i + 1 for i, t in enumerate(row) if t in eos_ids), LENGTH) for row in expected]
    assert min(lengths) < LENGTH == max(lengths)
    np.testing.assert_array_equal(np.sum(rollout.mask, axis=1), lengths)


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_stored_completions_of_transformers(case):
    stored = np.load(PATH)
    model, params = load_model(DIRECTORY / case)
    assert_greedy(model, params, stored[f"{case}.completion"], stored[f"{case}.eos"].tolist())


def test_longrope_chooses_by_the_length_that_a_row_may_reach(tmp_path):
    """Prompts of 9, 1, 2, 5, 7 and 9 tokens are completed by 12, for an original length of 8, 14 and 21."""
    plain, params = load_model(DIRECTORY / "phi4_mini")
    scaling = FIXTURES["phi4_mini"]["rope_scaling"] | {"attention_factor": 1.2}
    config = FIXTURES["phi4_mini"] | {"rope_scaling": scaling}
    sampling, prompt = SamplingConfig(max_new_tokens=LENGTH, temperature=0.0), Sequences(*prompts())

    def model_of(original):
        changed = architecture_from_dict(config | {"original_max_position_embeddings": original})
        return dataclasses.replace(plain, architecture=changed)

    long, mixed, short = (generate(model_of(length), params, prompt, KEY, sampling) for length in (8, 14, 21))
    is_long = np.sum(prompt.mask, axis=1) + LENGTH > 14
    assert is_long.tolist() == [True, False, False, True, True, True]
    expected = np.where(is_long[:, None], long.logprobs, short.logprobs)
    np.testing.assert_allclose(mixed.logprobs, expected, atol=1e-4)
    assert np.abs(long.logprobs - short.logprobs).max(axis=1).min() > 0.1
    # the update scores a completion with the same frequencies, also if it ended early
    kept = np.arange(LENGTH)[None] < np.array([LENGTH, 3, LENGTH, 3, 3, LENGTH])[:, None]
    hidden = model_of(14).completion_hidden(params, prompt, Sequences(mixed.tokens, jnp.asarray(kept)))
    scored = log_softmax(head_logits(hidden, plain.head(params)))
    scored = np.take_along_axis(scored, np.asarray(mixed.tokens)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(scored[kept], np.asarray(mixed.logprobs)[kept], atol=1e-4)
    if importlib.util.find_spec("torch"):  # no row can pass the original length
        from transformers import AutoModelForCausalLM

        shutil.copytree(DIRECTORY / "phi4_mini", tmp_path, dirs_exist_ok=True)
        changed = json.dumps(config | {"original_max_position_embeddings": 21})
        (tmp_path / "config.json").write_text(changed)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path).float()
        theirs.generation_config.eos_token_id = None
        np.testing.assert_array_equal(short.tokens, transformers_greedy(theirs, *prompts(), ()))


@pytest.mark.parametrize("name", ["Qwen3", "Llama"])
def test_greedy_equals_transformers_on_a_random_model(name, tmp_path):
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


# The distribution of samples


def test_the_vocabulary_is_ranked_for_top_k_and_top_p_only():
    model, params = tiny_model()
    arguments = (model, params, ragged(np.random.default_rng(0), 2, 3), row_keys(KEY, 2))

    def ranks(**truncation):
        sampling = SamplingConfig(max_new_tokens=2, **truncation)
        text = compiled_sample.lower(*arguments, sampling, StopTokens((EOS,))).as_text()
        return "chlo.top_k" in text or "stablehlo.sort" in text

    assert not ranks(min_p=0.1)
    assert ranks(top_k=3)
    assert ranks(top_p=0.9)


@pytest.mark.parametrize(
    "truncation", [dict(), dict(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)], ids=str
)
def test_frequencies_follow_the_exact_probabilities(truncation):
    """All completions of two tokens from a vocabulary of 8 with one EOS, by a chi-square test at 0.1 %."""
    vocabulary, eos, rows = 8, 1, 4096
    model, params = tiny_model(scale=3.0, vocab_size=vocabulary)
    prompt = np.array([2, 5, 3])
    logits = jax.jit(model.logits)
    after_one = np.array([[*prompt, first] for first in range(vocabulary)])
    scores = np.asarray(logits(params, Sequences(after_one, np.ones_like(after_one, bool))))
    sampling = SamplingConfig(max_new_tokens=2, **truncation)
    exact = np.exp(log_softmax(truncated_by_definition(scores[:, 2:] / sampling.temperature, sampling)))
    expected = exact[0, 0][:, None] * exact[:, 1]  # [first, second]
    expected[eos] = np.where(np.arange(vocabulary) == 0, exact[0, 0, eos], 0)  # padded with 0

    tokens = np.tile(prompt, (rows, 1))
    rollout = generate(
        model,
        params,
        Sequences(tokens, np.ones_like(tokens, bool)),
        jax.random.key(3),
        sampling,
        StopTokens((eos,), 0),
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


def truncated_by_definition(scores, sampling):
    """Return truncated scores, one distribution at a time, from the definitions of the truncations."""
    scores = np.array(scores, np.float64)
    for row in scores.reshape(-1, scores.shape[-1]):
        order = np.argsort(-row)
        row[order[sampling.top_k or len(row) :]] = -np.inf
        probability = np.exp(log_softmax(row))
        last = next(i for i in range(len(row)) if probability[order[: i + 1]].sum() >= sampling.top_p - 1e-12)
        row[order[last + 1 :]] = -np.inf
        row[np.exp(row) < sampling.min_p * np.exp(row.max())] = -np.inf
    return scores


def test_log_probabilities_are_those_of_the_untruncated_student(tiny):
    model, params, prompt = tiny
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.5, top_k=4, top_p=0.9)
    rollout = generate(model, params, prompt, KEY, sampling, StopTokens(tuple(range(4, 12))))
    logits = logits_of(model, params, prompt, rollout)
    expected = np.take_along_axis(log_softmax(logits), np.asarray(rollout.tokens)[..., None], axis=2)[..., 0]
    generated = np.asarray(rollout.mask)
    assert not generated.all()
    np.testing.assert_allclose(rollout.logprobs, np.where(generated, expected, 0), atol=1e-4)
    assert np.all(np.asarray(rollout.logprobs)[~generated] == 0)


# Ids that only pad the embedding

KNOWN = 20
"""The number of ids of the tokenizer; the tiny model has 32."""


@pytest.fixture(scope="module")
def padded():
    """A model whose ids from KNOWN on are the most likely ones, and prompts without them."""
    model, params = tiny_model()
    head = np.array(params["head"])
    head[KNOWN:] *= np.where(np.arange(32 - KNOWN) % 2, 30, -30)[:, None]  # the logits are both 30 and -30 x
    prompt = ragged(np.random.default_rng(0), 8, 6)
    return (
        model,
        params | {"head": jnp.asarray(head)},
        dataclasses.replace(prompt, tokens=prompt.tokens % KNOWN),
    )


def logits_of(model, params, prompt, rollout):
    """Return the logits of each completion token without a cache, in float64."""
    both = Sequences(
        np.concatenate([prompt.tokens, rollout.tokens], axis=1),
        np.concatenate([prompt.mask, rollout.mask], axis=1),
    )
    logits = jax.jit(model.logits)(params, both)[:, prompt.tokens.shape[1] - 1 : -1]
    return np.asarray(logits, np.float64)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=["one device", "vocabulary split"])
@pytest.mark.parametrize(
    "choice",
    [
        dict(temperature=0.0),
        dict(),
        dict(temperature=0.7, top_k=3),
        dict(top_p=0.5),
        dict(min_p=0.3),
        dict(top_k=10, top_p=0.8, min_p=0.1),
    ],
    ids=str,
)
def test_ids_that_the_tokenizer_does_not_have_are_never_sampled(padded, choice, mesh):
    """The truncations keep the same ids as for the logits of the tokenizer's ids alone."""
    model, params, prompt = padded
    sampling = SamplingConfig(max_new_tokens=8, **choice)
    if mesh:
        model = dataclasses.replace(model, sharding=Sharding(make_mesh(*mesh)))
        params = jax.device_put(params, tree_shardings(model.sharding, model.logical_axes(), params))
    rollout = generate(model, params, prompt, KEY, sampling, NO_STOP._replace(known=KNOWN))
    tokens = np.asarray(rollout.tokens)
    assert np.max(tokens) < KNOWN
    logits = logits_of(*padded, rollout)
    assert np.mean(logits.argmax(-1) >= KNOWN) > 0.9, "most of the model's choices are other ids"
    own = logits[..., :KNOWN]
    if not sampling.temperature:
        np.testing.assert_array_equal(tokens, own.argmax(-1))
        return
    kept = truncated_by_definition(own / sampling.temperature, sampling)
    assert np.isfinite(np.take_along_axis(kept, tokens[..., None], axis=-1)).all()


def test_log_probabilities_count_the_ids_that_are_not_sampled(padded):
    """They are those of the student that the loss sees, so that the importance ratio is 1."""
    model, params, prompt = padded
    rollout = generate(model, params, prompt, KEY, SAMPLING, NO_STOP._replace(known=KNOWN))
    every = log_softmax(logits_of(model, params, prompt, rollout))
    expected = np.take_along_axis(every, np.asarray(rollout.tokens)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(rollout.logprobs, expected, rtol=1e-5, atol=1e-3)


def test_program_is_unchanged_if_the_tokenizer_has_all_ids():
    model, params = tiny_model()
    arguments = (model, params, ragged(np.random.default_rng(0), 2, 3), row_keys(KEY, 2), SAMPLING)
    programs = [
        compiled_sample.lower(*arguments, StopTokens((EOS,), known=known)).as_text()
        for known in (None, 32, 40, KNOWN)
    ]
    assert programs[0] == programs[1] == programs[2] != programs[3]


# Stop tokens


@pytest.fixture(scope="module")
def tiny():
    model, params = tiny_model()
    return model, params, ragged(np.random.default_rng(0), 8, 6)


@pytest.fixture(scope="module")
def unstopped(tiny):
    """Completions of the prompts of `tiny` without stop tokens."""
    return generate(*tiny, KEY, SAMPLING)


def stopped_by_hand(unstopped, eos_ids):
    """Return (tokens, mask) of a rollout without stop tokens, cut after the first EOS of each row."""
    tokens = np.array(unstopped.tokens)
    mask = np.ones_like(tokens, bool)
    for row in range(len(tokens)):
        ends = [i for i, token in enumerate(tokens[row]) if token in eos_ids]
        if ends:
            mask[row, ends[0] + 1 :] = False
    return np.where(mask, tokens, 0), mask


def test_without_stop_tokens_every_position_is_filled(unstopped):
    assert np.all(unstopped.mask)
    assert np.all(np.asarray(unstopped.logprobs) < 0)


def test_completions_end_with_the_first_eos_and_are_padded(tiny, unstopped):
    eos_ids = tuple(int(t) for t in np.asarray(unstopped.tokens)[[0, 1, 2], [0, 3, 7]])
    rollout = generate(*tiny, KEY, SAMPLING, StopTokens(eos_ids))
    tokens, mask = stopped_by_hand(unstopped, eos_ids)
    lengths = mask.sum(1)
    assert lengths[0] == 1
    assert lengths.max() == 8
    np.testing.assert_array_equal(rollout.tokens, tokens)
    np.testing.assert_array_equal(rollout.mask, mask)
    np.testing.assert_allclose(rollout.logprobs, np.where(mask, unstopped.logprobs, 0), atol=1e-5)


def test_padding_is_the_pad_token(tiny, unstopped):
    eos_ids = (int(unstopped.tokens[0, 0]),)
    rollout = generate(*tiny, KEY, SAMPLING, StopTokens(eos_ids, pad_id=9))
    tokens, mask = stopped_by_hand(unstopped, eos_ids)
    assert not mask.all()
    np.testing.assert_array_equal(rollout.tokens, np.where(mask, tokens, 9))


@pytest.mark.parametrize("slots", [1, 2, 128])
@pytest.mark.parametrize("eos_ids", [range(32), range(8, 24), ()], ids=["at once", "soon", "never"])
def test_only_rows_that_go_on_are_decoded(tiny, unstopped, eos_ids, slots, monkeypatch):
    """Decoding stops when every row has ended; until then, it is told which ones have not."""
    monkeypatch.setattr(decode_module, "FIRST_SLOTS", slots)
    rows_of_steps = []
    decode = Model.decode

    def counted(self, params, tokens, cache, real):
        jax.debug.callback(lambda real: rows_of_steps.append(real.tolist()), real, ordered=True)
        return decode(self, params, tokens, cache, real)

    monkeypatch.setattr(Model, "decode", counted)
    model, params, prompt = tiny
    stop = StopTokens(tuple(eos_ids))
    rollout = jax.jit(lambda *a: sample(model, *a, row_keys(KEY, 8), SAMPLING, stop))(params, prompt)
    jax.block_until_ready(rollout)
    jax.effects_barrier()
    _, mask = stopped_by_hand(unstopped, eos_ids)
    np.testing.assert_array_equal(rollout.mask, mask)
    # the prefill gives the first token
    assert rows_of_steps == [column for column in mask.T[1:].tolist() if any(column)]


# The cache


def test_cache_sizes_double_up_to_the_maximum_length():
    assert cache_sizes(1) == (1,)
    assert cache_sizes(128) == (128,)
    assert cache_sizes(129) == (128, 129)
    assert cache_sizes(1000) == (128, 256, 512, 1000)


@pytest.mark.parametrize("layers", [2, UNROLLED + 1], ids=["layer by layer", "scan"])
@pytest.mark.parametrize("mesh", [None, (1, 4, 2)])
def test_a_growing_cache_changes_no_completion(layers, mesh, monkeypatch):
    sharding = mesh and Sharding(make_mesh(*mesh))
    model, params = tiny_model(sharding, scale=3.0, num_hidden_layers=layers)
    prompt, sampling = ragged(np.random.default_rng(), 8, 6), SamplingConfig(max_new_tokens=9)
    results = []
    for slots in (128, 2):
        monkeypatch.setattr(decode_module, "FIRST_SLOTS", slots)
        run = jax.jit(lambda *a: sample(model, *a, row_keys(KEY, 8), sampling, StopTokens((EOS,))))
        results.append((run(params, prompt), run.lower(params, prompt).as_text()))
    (whole, _), (grown, text) = results
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_allclose(grown.logprobs, whole.logprobs, atol=1e-5)
    slots_read = {
        int(slots) for slots in re.findall(r"\(.*tensor<8x2x8x(\d+)xf32>\) -> tensor<8x2x2x\1xf32>", text)
    }
    assert mesh or slots_read == {6 + 2, 6 + 4, 6 + 8, 6 + 9}  # slots of the keys in the scores


# Rows, keys and meshes


def test_a_row_depends_on_neither_padding_nor_other_rows(tiny, unstopped):
    model, params, prompt = tiny
    others = ragged(np.random.default_rng(9), 5, 11)
    wider = np.pad(prompt.tokens, [(0, 0), (5, 0)], constant_values=7)
    keys = row_keys(KEY, 8)
    order = np.array([6, 1, 3])
    mixed = Sequences(
        np.concatenate([others.tokens, wider[order]]),
        np.concatenate([others.mask, np.pad(prompt.mask, [(0, 0), (5, 0)])[order]]),
    )
    mixed_keys = jnp.concatenate([row_keys(jax.random.key(1), 5), keys[order]])
    rollout = generate(model, params, mixed, mixed_keys, SAMPLING)
    np.testing.assert_array_equal(rollout.tokens[5:], unstopped.tokens[order])
    np.testing.assert_allclose(rollout.logprobs[5:], unstopped.logprobs[order], atol=1e-5)


def test_batch_of_one(tiny, unstopped):
    model, params, prompt = tiny
    first = Sequences(prompt.tokens[:1], prompt.mask[:1])
    rollout = generate(model, params, first, KEY, SAMPLING)
    np.testing.assert_array_equal(rollout.tokens, unstopped.tokens[:1])


def test_the_key_determines_the_completions(tiny, unstopped):
    same = generate(*tiny, jax.random.key_data(KEY), SAMPLING)
    jax.tree.map(np.testing.assert_array_equal, same, unstopped)
    other = generate(*tiny, jax.random.key(1), SAMPLING)
    assert np.mean(np.asarray(other.tokens) == np.asarray(unstopped.tokens)) < 0.5


def test_inside_an_outer_jit(tiny, unstopped):
    model, params, prompt = tiny
    run = jax.jit(lambda key, params, prompt: generate(model, params, prompt, key, SAMPLING))
    np.testing.assert_array_equal(run(KEY, params, prompt).tokens, unstopped.tokens)


def test_compiled_once_per_shape_and_setting(tiny, unstopped):
    before = compiled_sample._cache_size()
    model, params, prompt = tiny
    other = Sequences(prompt.tokens[::-1], prompt.mask[::-1])
    generate(model, params, other, jax.random.key(5), SamplingConfig(max_new_tokens=8), NO_STOP)
    assert compiled_sample._cache_size() == before
    generate(model, params, other, KEY, SAMPLING, StopTokens((EOS,), 7))
    assert compiled_sample._cache_size() == before + 1


def test_a_deep_model_is_scanned_and_samples_the_same_on_a_mesh():
    sharding = Sharding(make_mesh(2, 2, 2))
    model, params = tiny_model(num_hidden_layers=UNROLLED + 1)
    prompt = ragged(np.random.default_rng(), 8, 6)
    single = generate(model, params, prompt, KEY, SAMPLING)
    sharded = dataclasses.replace(model, sharding=sharding)
    params = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    rollout = generate(sharded, params, prompt, KEY, SAMPLING)
    np.testing.assert_allclose(rollout.logprobs[:, 0], single.logprobs[:, 0], atol=1e-4)
    # rounding may change a sampled token, and then all tokens after it
    assert np.mean(np.asarray(rollout.tokens) == np.asarray(single.tokens)) > 0.9


def test_same_on_a_mesh(tiny, unstopped):
    model, params, prompt = tiny
    sharding = Sharding(make_mesh(2, 2, 2))
    model = dataclasses.replace(model, sharding=sharding)
    params = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    rollout = generate(model, params, prompt, KEY, SAMPLING)
    np.testing.assert_array_equal(rollout.tokens, unstopped.tokens)
    np.testing.assert_allclose(rollout.logprobs, unstopped.logprobs, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_sample_like_the_merged_model(tied):
    plain, base = tiny_model(tie_word_embeddings=tied)
    options = LoraConfig(rank=2, targets=("v", "embed", "head"))
    model, params = adapted(plain, base, options, scale=0.1)
    prompt = ragged(np.random.default_rng(0), 8, 6)
    rollout = generate(model, params, prompt, KEY, SAMPLING)
    without_adapters = dataclasses.replace(plain, architecture=model.architecture.merged)
    expected = generate(without_adapters, merged(model, params), prompt, KEY, SAMPLING)
    np.testing.assert_array_equal(rollout.tokens, expected.tokens)
    np.testing.assert_allclose(rollout.logprobs, expected.logprobs, atol=1e-4)
    assert np.abs(generate(plain, base, prompt, KEY, SAMPLING).logprobs - expected.logprobs).max() > 0.1
