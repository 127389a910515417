"""The exception for users' mistakes: one printable line, whatever it quotes."""

import pickle

import pytest

from sdft_jax.errors import LONGEST, SdftError


@pytest.mark.parametrize(
    ("sentence", "printed"),
    [
        ("the name 'a\nb' is wrong", r"the name 'a\nb' is wrong"),
        ("\x1b[2J\r\x85\u2028\u202e", r"\x1b[2J\r\x85\u2028\u202e"),
        ("naïve 深い 🙂 | a  b", "naïve 深い 🙂 | a  b"),
    ],
)
def test_control_characters_are_escaped(sentence, printed):
    assert str(SdftError(sentence)) == printed


def test_middle_of_a_long_sentence_is_left_out():
    text = str(SdftError(f"config.json: {'x' * 10**6}: correct it."))
    assert text.startswith("config.json: xxx")
    assert text.endswith("xxx: correct it.")
    assert len(text) < LONGEST


def test_details_are_further_lines_also_from_another_process():
    error = SdftError("out of memory.", "the largest arrays:", "  w")
    assert str(error) == "out of memory.\nthe largest arrays:\n  w"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
