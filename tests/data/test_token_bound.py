"""The bound never exceeds the number of tokens, and is near it for texts far over a limit."""

import random
import sys
import unicodedata

import pytest
from tokenizers import normalizers, pre_tokenizers

from fixtures.chat import build_bpe, build_sentencepiece, build_tokenizer
from sdft_jax.data import token_bound as module
from sdft_jax.data.token_bound import token_bound
from sdft_jax.mini.tokenizer import SENTENCE_TOKENS
from sdft_jax.mini.tokenizer import build_tokenizer as build_words


def with_normalizer(*parts):
    tokenizer = build_bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*parts])
    return tokenizer


BOUNDED = {
    "byte-level": build_tokenizer,
    "byte-level BPE and NFC": build_bpe,
    "NFKC": lambda: with_normalizer(normalizers.NFKC()),
    "replacement": lambda: with_normalizer(normalizers.Replace("aaa", "b"), normalizers.NFD()),
    "control tokens that take whitespace": lambda: build_bpe(lstrip=True, rstrip=True),
    "BPE with byte fallback": build_sentencepiece,
    "words": build_words,
}
PIECES = [
    *(
        "a",
        " ",
        "\n",
        "x" * 30,
        "aaa" * 9,
        "e\u0301",
        "\u03b1\u0313\u0300\u0345",
        "\u1112\u1161\u11ab",
        "\u00a8",
    ),
    *(
        "\U0001f600",
        "\ufdfa",
        "\u200b",
        "\u00a0",
        "\x1c",
        " " * 20,
        "<|im_end|>",
        "letters",
        SENTENCE_TOKENS[0],
    ),
]


@pytest.mark.parametrize("trimmed", [True, False])
@pytest.mark.parametrize("name", BOUNDED)
def test_no_text_has_fewer_tokens_than_the_bound(name, trimmed, monkeypatch):
    monkeypatch.setattr(module, "LONG", 50)  # the length of the parts that are counted
    tokenizer = BOUNDED[name]()
    bound, rng = token_bound(tokenizer), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 40))) * rng.choice([1, 1, 7])
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for limit in (0, 10, 10**6):
            assert bound.at_least(text, limit, trimmed) <= tokens


@pytest.mark.parametrize("name", BOUNDED)
def test_a_text_that_is_far_over_a_limit_is_recognized(name):
    bound = token_bound(BOUNDED[name]())
    assert bound.at_least("many words " * 300_000, 1000, trimmed=True) > 1000


def test_whitespace_counts_if_nothing_removes_it():
    spaces = " " * 100_000
    assert token_bound(build_tokenizer()).at_least(spaces, 1000, trimmed=False) > 1000
    assert token_bound(build_tokenizer()).at_least(spaces, 1000, trimmed=True) == 0
    assert token_bound(build_bpe(rstrip=True)).at_least(spaces, 1000, trimmed=False) == 0


def unknown_words():
    tokenizer = build_bpe()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def without_a_byte():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[1:]
    core = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def removing():
    tokenizer = build_bpe()
    split = pre_tokenizers.Split("x", "removed")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])
    return tokenizer


@pytest.mark.parametrize(
    "build",
    [
        unknown_words,
        without_a_byte,
        removing,
        lambda: with_normalizer(normalizers.StripAccents()),
        lambda: with_normalizer(normalizers.Replace("x", "")),
    ],
)
def test_a_tokenizer_that_may_drop_text_has_no_bound(build):
    assert token_bound(build()) is None


def test_no_character_is_composed_of_more_than_four():
    characters = map(chr, range(sys.maxunicode + 1))
    assert max(len(unicodedata.normalize("NFD", character)) for character in characters) == 4
