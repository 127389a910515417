"""Rollouts as colored text."""

import re
from xml.etree import ElementTree

from sdft_jax.reporting.colored_text import color_rollouts
from sdft_jax.reporting.rollouts import RolloutRow

ROW = RolloutRow("1 < 2 & 3?", "<think> a", ["<think>", " a", "\n"], [0.0, 1.0, 4.0], [0.0, -0.5, -2.0])


def reds(colored) -> list[int]:
    """Return the green component of each token's background: 255 is white, 90 is red."""
    return [int(number) for number in re.findall(r"rgb\(255,(\d+),\1\)", colored.html)]


def test_the_texts_are_escaped_and_complete():
    page = ElementTree.fromstring(f"<html>{color_rollouts([ROW, ROW])._repr_html_()}</html>")
    texts = ["".join(part.itertext()) for part in page.iter("div")]
    assert texts.count("1 < 2 & 3?") == 2
    assert [span.text for span in page.iter("span")] == [*ROW.tokens, *ROW.tokens]
    assert page.find(".//span[2]").attrib["title"] == "divergence 1.000, log ratio -0.500"
    assert "mean 1.667 nats per token" in texts


def test_the_color_shows_the_divergence():
    assert reds(color_rollouts([ROW])) == [255, 255 - 41, 255 - 165]
    assert reds(color_rollouts([ROW], scale=2.0)) == [255, 255 - 82, 255 - 165]
    equal = RolloutRow("p", "a", ["a"], [0.0], [0.0])
    assert reds(color_rollouts([equal])) == [255]
    assert color_rollouts([]).html == ""


def test_words_keep_their_spaces():
    def completion(text, tokens):
        row = RolloutRow("p", text, tokens, [0.0] * len(tokens), [0.0] * len(tokens))
        page = ElementTree.fromstring(f"<html>{color_rollouts([row]).html}</html>")
        return "".join(page.findall("./div/div")[1].itertext())

    assert completion("a b c", ["a", "b", "c"]) == "a b c"
    assert completion("a b c", ["a", " b", " c"]) == "a b c"
    assert completion("é", ["\ufffd", "\ufffd"]) == "\ufffd\ufffd"  # the bytes of one character


def test_a_console_shows_the_text():
    assert "4.0000    -2.0000  '\\n'" in repr(color_rollouts([ROW]))
