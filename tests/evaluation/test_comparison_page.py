"""The page of answers that changed: escaped, marked, without assets."""

import html.parser

from runs import write_answers
from sdft_jax.evaluation.comparison import compare
from sdft_jax.evaluation.comparison_page import LONGEST, comparison_page, marked_words

HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }}'


class Reader(html.parser.HTMLParser):
    """Collects the tags, their attributes and the text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, text):
        self.text += text


def test_every_text_is_escaped_and_nothing_is_loaded(tmp_path):
    turns = [
        {"role": "system", "content": HOSTILE},
        {"role": "user", "content": None, "tool_calls": [HOSTILE]},
    ]
    before = write_answers(
        tmp_path / "a",
        [True, False, True, False],
        completion=f"old {HOSTILE}",
        prompt=turns,
        answer=[HOSTILE],
    )
    after = write_answers(
        tmp_path / "<b>",
        [False, True, True, False],
        completion=lambda row: f"old {HOSTILE}" if row == 3 else f"new {HOSTILE}",
        prompt=turns,
        answer=[HOSTILE],
        fault=lambda row: HOSTILE if row == 0 else None,
        truncated=True,
    )
    page = comparison_page(compare(before, after, "student"), "student")
    reader = Reader()
    reader.feed(page)
    assert not {"script", "img", "link", "b>"} & set(reader.tags)
    assert not {"src", "href", "onclick", "style"} & set(reader.attributes)
    assert reader.text.count(HOSTILE) == 10, "each turn, answer and fault"
    for text in ("Lost: right in A, wrong in B (1)", "Gained: wrong in A, right in B (1)", "verdict (1)"):
        assert text in reader.text
    assert reader.tags.count("details") == 3, "row 3 has the same answer"
    assert f"the scorer failed ({HOSTILE}), truncated, 3 tokens" in reader.text
    assert page.count("<mark>old </mark>") == page.count("<mark>new </mark>") == 3


def test_words_that_differ_are_marked():
    a, b = marked_words("x y z", "x q\nr z")
    assert a == [("x ", False), ("y ", True), ("z", False)]
    assert b == [("x ", False), ("q\nr ", True), ("z", False)]
    assert marked_words("", "new") == ([], [("new", True)])
    long = "word " * (LONGEST + 1)
    assert marked_words(long, "word") == ([(long, False)], [("word", False)])
