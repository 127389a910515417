"""The answers to lm-eval's requests, compared with its own `hf` model of the same checkpoint in PyTorch."""

import dataclasses
import shutil

import numpy as np
import pytest

from runs import config_of
from suites import WORDS, text

pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("accelerate")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from sdft_jax.errors import SdftError
from sdft_jax.evaluation.harness import Harness, read_generation
from sdft_jax.models import load_tokenizer
from sdft_jax.training.export import load_speaker

pytestmark = pytest.mark.usefixtures("shared_compilations")

RNG = np.random.default_rng(0)
QUESTION = text(RNG, 20)
PAIRS = [
    *((text(RNG, RNG.integers(1, 25)), " " + text(RNG, RNG.integers(1, 4))) for _ in range(8)),
    *((QUESTION, f" {word}") for word in WORDS[:3]),
    (QUESTION, f" {WORDS[0]}"),
    (text(RNG, 5) + "  ", text(RNG, 1)),
    ("", text(RNG, 3)),
    (text(RNG, 300), " " + text(RNG, 2)),
    (text(RNG, 100), " " + text(RNG, 180)),
]
"""Contexts and continuations: some share a row, one repeats, one has trailing spaces, one is empty, and two
are longer than the model's 256 tokens."""
TEXTS = [("",), *((text(RNG, count),) for count in (1, 255, 256, 257, 600))]
"""Texts of up to three windows."""
CONVERSATION = [{"role": "user", "content": QUESTION}]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def generations(harness, template):
    prompts = [text(np.random.default_rng(seed), 5 + seed) for seed in range(6)]
    if template:
        prompts = [harness.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    settings = [{"until": ["cat", "red"], "max_gen_toks": 24}, {"until": [], "max_gen_toks": 24}]
    asked = [(prompt, settings[index % 2]) for index, prompt in enumerate(prompts)]
    return [*asked, (text(np.random.default_rng(9), 240), {"until": "dog", "max_gen_toks": 24})]


@pytest.fixture(scope="module")
def hf(tiny_directory):
    """One row at a time: in a batch, `hf` goes on after a stop string until all rows have one."""
    return HFLM(pretrained=str(tiny_directory), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture(scope="module")
def expected(hf):
    likelihoods = hf.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    rolling = hf.loglikelihood_rolling(instances("loglikelihood_rolling", TEXTS), disable_tqdm=True)
    completions = {
        template: hf.generate_until(instances("generate_until", generations(hf, template)), disable_tqdm=True)
        for template in (False, True)
    }
    return likelihoods, rolling, completions


@pytest.fixture(scope="module", params=[1, 8])
def harness(request, tiny_directory):
    config = config_of(tiny_directory, "unused", f"mesh.fsdp={request.param}")
    return Harness(load_speaker(config), config)


def test_loglikelihoods_are_those_of_hf(harness, expected):
    found = harness.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    logprobs, greedy = zip(*found, strict=True)
    # sums over up to 180 tokens, which PyTorch makes in float32
    np.testing.assert_allclose(logprobs, [one for one, _ in expected[0]], atol=1e-4, rtol=1e-6)
    assert list(greedy) == [one for _, one in expected[0]]
    assert harness.cuts["loglikelihood"] == 2


def test_rolling_loglikelihoods_are_those_of_hf(harness, expected):
    found = harness.loglikelihood_rolling(instances("loglikelihood_rolling", TEXTS))
    np.testing.assert_allclose(found, expected[1], atol=1e-4, rtol=1e-6)
    assert found[0] == 0


@pytest.mark.parametrize("template", [False, True])
def test_generations_are_those_of_hf(harness, expected, template):
    before = harness.cuts["generate_until"]
    found = harness.generate_until(instances("generate_until", generations(harness, template)))
    assert found == expected[2][template]
    assert harness.cuts["generate_until"] == before + 1


def test_a_greedy_continuation_is_what_the_model_generates(harness):
    settings = {"until": [], "max_gen_toks": 24}
    (completion,) = harness.generate_until(instances("generate_until", [(QUESTION, settings)]))
    first = completion.split()[0]
    pairs = [(QUESTION, f" {first}"), (QUESTION, " brown" if first != "brown" else " white")]
    found = harness.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_texts_are_encoded_as_by_hf(hf, harness, tiny_directory, tmp_path):
    """With a tokenizer that begins a text with its BOS, which a chat template may have written already."""
    from tokenizers.processors import TemplateProcessing

    directory = tmp_path / "with-bos"
    shutil.copytree(tiny_directory, directory)
    tokenizer = load_tokenizer(str(directory))
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    speaker = dataclasses.replace(harness.speaker, tokenizer=tokenizer)
    ours = Harness(speaker, harness.config)
    theirs = HFLM(pretrained=hf.model, tokenizer=tokenizer, max_length=256)
    assert ours.prefix_token_id == theirs.prefix_token_id == tokenizer.bos_token_id
    for string in ("cat dog", "<|im_start|>user\ncat", ""):
        for special in (None, True, False):
            assert ours.tok_encode(string, special) == theirs.tok_encode(string, special)
    assert ours.tok_encode("cat")[0] == tokenizer.bos_token_id
    assert ours._encode_pair("cat ", "dog") == theirs._encode_pair("cat ", "dog")


def test_the_chat_template_is_that_of_hf(hf, harness):
    answer = [*CONVERSATION, {"role": "assistant", "content": "red"}]
    assert harness.apply_chat_template(CONVERSATION) == hf.apply_chat_template(CONVERSATION)
    assert harness.apply_chat_template(answer, False) == hf.apply_chat_template(answer, False)
    assert harness.chat_template(True) == hf.chat_template(True)


def test_known_answers_are_not_computed_again(harness):
    asked = instances("loglikelihood", PAIRS[:2])
    wanted = harness.loglikelihood(asked, disable_tqdm=True)
    without_model = dataclasses.replace(harness.speaker, params={})
    again = Harness(without_model, harness.config, log=harness.log)
    assert again.loglikelihood(asked, disable_tqdm=True) == wanted


def test_repeated_requests_are_different_samples(harness):
    settings = {"until": [], "max_gen_toks": 24, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    texts = harness.generate_until(instances("generate_until", [(QUESTION, settings)] * 3))
    assert len(set(texts)) == 3
    other = Harness(harness.speaker, harness.config)
    assert other.generate_until(instances("generate_until", [(QUESTION, settings)])) == texts[:1]


def test_differences_from_hf_are_reported(harness, tmp_path):
    assert harness.unlisted_end_of_turn() is None
    assert harness.ignored_settings() == {}
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "eos_token_id": 2}')
    model = dataclasses.replace(harness.speaker.model, source=str(tmp_path))
    other = Harness(dataclasses.replace(harness.speaker, model=model, eos_ids=(2, 1)), harness.config)
    assert other.unlisted_end_of_turn() == "<|im_start|>"
    assert other.ignored_settings() == {"repetition_penalty": 1.05}


def test_a_continuation_without_tokens_is_named(harness):
    with pytest.raises(SdftError, match=r"the continuation 'dog' of the context ...'red cat' has 0 tokens"):
        harness.loglikelihood(instances("loglikelihood", [("red cat", "dog")]), disable_tqdm=True)


def test_a_completion_longer_than_the_model_is_refused(harness):
    with pytest.raises(SdftError, match=r"up to 256 tokens, and the maximum length of the model with the"):
        harness.generate_until(instances("generate_until", [("cat", {"until": []})]))


def test_settings_of_a_generation():
    sampling, until = read_generation({"until": ["x", ""], "max_new_tokens": 5, "temperature": 0.7}, "t")
    assert until == ("x",)
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (5, 0.7, 1.0)
    greedy, _ = read_generation({"do_sample": False, "temperature": 0.7, "num_beams": 1}, "t")
    assert (greedy.max_new_tokens, greedy.temperature) == (256, 0.0)
    with pytest.raises(
        SdftError, match=r"my_task: generation_kwargs has num_beams=4, which the sampler does"
    ):
        read_generation({"num_beams": 4}, "my_task")
