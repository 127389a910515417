"""The reference of all keys, as text and as a Markdown table."""

from sdft_jax.config import keys
from sdft_jax.config.reference import as_help, as_markdown, options


def test_options_are_the_keys_in_order_of_declaration():
    assert [option.key for option in options()] == keys()


def test_documentation_is_the_docstring_under_the_field():
    by_key = {option.key: option for option in options()}
    assert by_key["sampling.max_new_tokens"].default == 1024
    assert by_key["sampling.max_new_tokens"].documentation == "Maximum length of a completion, in tokens."
    assert by_key["sharding.heads"].documentation == "Query heads."


def test_documentation_is_one_line():
    assert [option.key for option in options() if "\n" in option.documentation] == []


def test_help_has_each_key_with_its_default_and_its_wrapped_documentation():
    lines = as_help().splitlines()
    assert "train.batch_size=32" in lines
    assert lines[lines.index("train.batch_size=32") + 1] == "    " + next(
        option.documentation for option in options() if option.key == "train.batch_size"
    )
    assert max(len(line) for line in lines if line.startswith("    ")) <= 100


def test_table_has_a_row_for_each_key_and_escapes_vertical_bars():
    header, rule, *rows = as_markdown().splitlines()
    assert header == "| key | default | documentation |"
    assert rule == "| --- | --- | --- |"
    assert [row.split("`")[1] for row in rows] == keys()
    assert all(row.replace(r"\|", "").count("|") == 4 for row in rows)
    (alpha,) = [row for row in rows if row.startswith("| `divergence.alpha` |")]
    assert r"forward KL(T\|\|S)" in alpha
