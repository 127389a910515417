"""Rows that `sdft prepare knowledge` has written, read again."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks.knowledge_rows import convert

ROW = {
    "prompt": [{"role": "user", "content": "q"}],
    "demonstration": "d",
    "context": "c",
    "answer": "a",
    "skill": "ood",
    "article": "t",
}


def test_rows_are_unchanged_and_a_demonstration_may_be_missing():
    assert convert(ROW, "line 1") == ROW
    tested = {name: value for name, value in ROW.items() if name != "demonstration"}
    assert convert(tested | {"demonstration": None}, "line 1") == convert(tested, "line 1") == tested


@pytest.mark.parametrize("name", ["prompt", "context", "answer", "skill", "article"])
def test_missing_field(name):
    with pytest.raises(SdftError, match=rf"^train\.jsonl, line 3: field '{name}' is missing \(found: "):
        convert(ROW | {name: None}, "train.jsonl, line 3")
