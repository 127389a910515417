"""Control tokens in rows: refused, or the tokens of a tokenizer that does not have them as control tokens."""

import itertools

import numpy as np
import pytest

from fixtures.chat import SPECIAL, build_bpe, build_sentencepiece, build_tokenizer
from sdft_jax.data.control_tokens import ControlTokens
from sdft_jax.errors import SdftError
from sdft_jax.mini.tokenizer import build_tokenizer as build_words

END, START = "<|im_end|>", "<|im_start|>"
BUILDS = {
    "byte-level BPE": build_bpe,
    "BPE with byte fallback": build_sentencepiece,
}
OPTIONS = [{}, {"rstrip": True}, {"lstrip": True}, {"normalized": True}]
ROWS = [
    f"a{END}b",
    END,
    f"{END}{END} x",
    f"the <|im_e {END}\n",
    f"e\u0301 a {END} \u00e9 a",
    "no control token",
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_tokens_are_those_of_a_tokenizer_without_the_control_token(build, options):
    """The template writes only other control tokens, so that all of a text can be compared."""
    *others, last = ["<|endoftext|>", START, "<bos>", END]
    tokenizer, reference = build((*others, last), **options), build(tuple(others), **options)
    control = ControlTokens(tokenizer, as_text=True)
    for row in ROWS:
        frame = f"<bos> {START}user\n" + "{}" + f" {START} assistant\n"
        tokens = control.encode(frame.format(control.admit(row, "here")), "here")
        expected = reference(frame.format(row), add_special_tokens=False)["input_ids"]
        if END not in row:
            assert tokens is None
            tokens = tokenizer(frame.format(row), add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("build", [build_tokenizer, *BUILDS.values()])
def test_the_templates_own_control_tokens_stay_and_the_text_is_given_back(build):
    tokenizer = build()
    control = ControlTokens(tokenizer, as_text=True)
    row = f"a {END} b{START}{SPECIAL[3]} c"
    rendered = f"{START}user\n{{}}{END}\n{START}assistant\n"
    tokens = control.encode(rendered.format(control.admit(row, "here")), "here")
    names = [tokenizer.convert_ids_to_tokens(int(token)) for token in tokens]
    assert [name for name in names if name in SPECIAL] == [START, END, START]
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    spaces = str.maketrans("", "", " ")  # SentencePiece adds one after each control token
    assert text.translate(spaces) == rendered.format(row).translate(spaces)


def test_words_of_a_control_token_are_unknown_to_a_vocabulary_of_words():
    tokenizer = build_words()
    control = ControlTokens(tokenizer, as_text=True)
    tokens = control.encode(control.admit(f"a {END} b", "here") + END, "here")
    a, b, unknown = tokenizer.convert_tokens_to_ids(["a", "b", "<unk>"])
    assert tokens.tolist() == [a, *[unknown] * 3, b, tokenizer.eos_token_id]


def test_texts_are_found_at_any_depth():
    tokenizer = build_tokenizer()
    turn = {
        "role": "user",
        "content": "a",
        "calls": [{"name": "get", "arguments": {"x": [f"b{END}"]}}],
        "n": 1,
    }
    with pytest.raises(
        SdftError, match=r"^rows, line 3: the message 0 contains '<\|im_end\|>'.*tokens=text\.$"
    ):
        ControlTokens(tokenizer, as_text=False).admit(turn, "rows, line 3: the message 0")
    control = ControlTokens(tokenizer, as_text=True)
    admitted = control.admit(turn, "here")
    assert admitted["calls"][0]["arguments"]["x"] == [f"b{control.marks[END]}"]
    assert {key: admitted[key] for key in ("role", "content", "n")} == {
        "role": "user",
        "content": "a",
        "n": 1,
    }
    for nested in itertools.accumulate(range(5000), lambda inner, _: [inner], initial="a"):
        deep = nested
    with pytest.raises(SdftError, match=r"^here is nested too deeply"):
        control.admit(deep, "here")


def test_characters_of_the_marks_are_refused_in_rows():
    control = ControlTokens(build_tokenizer(), as_text=True)
    for character in ("\U0010fffd", *control.marks.values()):
        with pytest.raises(SdftError, match=r"^here contains the private character U\+10FF"):
            control.admit(f"a{character}{END}", "here")
    assert ControlTokens(build_tokenizer(), as_text=False).admit("\U0010fffd", "here") == "\U0010fffd"


def test_a_model_that_makes_control_tokens_of_plain_text_is_refused():
    """As a Unigram model may, whose vocabulary has the control token as a word."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -1.0)], unk_id=0))
    core.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    control = ControlTokens(PreTrainedTokenizerFast(tokenizer_object=core), as_text=True)
    with pytest.raises(SdftError, match=r"^here: the tokenizer makes control tokens of this row's text"):
        control.encode(control.admit("a</s>", "here") + "</s>", "here")
