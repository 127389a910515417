"""YAML of the command line and of files: numbers in the usual notations, and no base-60 numbers."""

import math

import pytest

from sdft_jax.config.overrides import flatten, merge, parse_override, read_yaml
from sdft_jax.errors import SdftError

VALUES = {
    "10:13": "10:13",
    "1:30:00": "1:30:00",
    "7": 7,
    "-1": -1,
    "0x10": 16,
    "1_000": 1000,
    "0.5": 0.5,
    "1e-3": 1e-3,
    "1.0e-5": 1e-5,
    "2.5E+3": 2500.0,
    ".5": 0.5,
    "-.inf": -math.inf,
    "true": True,
    "null": None,
    "[1, 2e-3, a]": [1, 2e-3, "a"],
    "'7'": "7",
    "1.2.3": "1.2.3",
    "v5e-16": "v5e-16",
    "": "",
    "{": "{",
}


@pytest.mark.parametrize("text", VALUES)
def test_values_of_overrides(text):
    value = parse_override(f"a.b={text}")["a"]["b"]
    assert (value, type(value)) == (VALUES[text], type(VALUES[text]))


def test_values_of_files_are_parsed_in_the_same_way(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("profile: {steps: 10:13}\noptimizer:\n  learning_rate: 1e-5\n")
    assert read_yaml(file) == {"profile": {"steps": "10:13"}, "optimizer": {"learning_rate": 1e-5}}


def test_merge_updates_each_key_at_every_depth():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}) == {
        "a": {"b": 1, "c": 4},
        "d": {"e": 5},
    }


def test_flatten_returns_the_dotted_key_of_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": {}}) == {"a.b": 1, "a.c.d": (2, 3), "e": {}}


@pytest.mark.parametrize(
    "value", ["runs/exp #2", "&a run", "20240501", "1e5", "\nline\n", "a: b", "[1", "yes", "x=y"]
)
def test_value_of_a_text_key_is_literal(value):
    assert parse_override(f"output={value}", lambda key: key == "output") == {"output": value}


@pytest.mark.parametrize(
    ("value", "read"), [("null", None), ("None", None), ("'a\"'", 'a"'), ('"a\\n"', "a\n")]
)
def test_null_and_quoted_values_of_a_text_key_are_yaml(value, read):
    assert parse_override(f"output={value}", lambda key: True) == {"output": read}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: {b: 1}\nc: 2\na: {d: 3}\n", "line 3: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}\n", "line 1: the key 'b' is there twice"),
        ("a: &x [*x]\n", "line 1: an alias refers to itself"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: [" + "0," * 10_000 + "0]", "more than 10,000 values"),
        ('a: "\\ud800"', "line 1: half of a surrogate pair is not a character"),
        ("a: 2024-99-99", "a value is not of its type: month must be in 1..12"),
        ("a: " + "1" * 5000, "a value is not of its type: Exceeds the limit"),
        (
            "a: &a [1, 1, 1, 1]\n"
            + "".join(
                f"{b}: &{b} [{', '.join('*' + a for _ in range(9))}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "more than 10,000 values",
        ),
    ],
)
def test_faults_of_yaml_files_are_found_before_values_are_built(tmp_path, text, problem):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(
        SdftError, match=rf"^config {file} is not valid YAML \(.*{problem}.*\): fix the file\.$"
    ):
        read_yaml(file)


def test_aliases_are_expanded(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: &x {b: 1}\nc: *x\n")
    assert read_yaml(file) == {"a": {"b": 1}, "c": {"b": 1}}


def test_surrogate_pair_is_one_character():
    assert parse_override('a="\\ud83d\\ude00"') == {"a": "😀"}


def test_argument_that_is_not_utf8_is_refused():
    with pytest.raises(
        SdftError, match=r"^override 'output=a.*udcff' contains bytes that are not UTF-8: remove them"
    ):
        parse_override("output=a\udcff", lambda key: True)
