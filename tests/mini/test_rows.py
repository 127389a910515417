"""Rows of the built-in tasks by name: disjoint splits, sizes, defaults and errors for unknown names."""

import itertools
import re

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.mini import chains, lists, rows, storms

SPLITS = ("train", "validation", "heldout")
SKILLS = ["", *(skill.verb for skill in lists.NEW_SKILLS)]
CHAINS = ["chains", *(f"chains:{skill.verb}" for skill in chains.NEW_SKILLS)]
STORMS = ["storms", *(f"storms:{kind}" for kind in storms.QUESTIONS), "storms:questions"]
TAUGHT = [*SKILLS[1:], *CHAINS[1:], *STORMS]
OLD = ["old", "chains:old", "storms:old"]
GENERAL = ["general", "chains:general", "storms:general"]


@pytest.fixture
def small_splits(monkeypatch):
    """Reduce each split to 32 rows: a hash assigns each list to a split, whatever the number of rows."""
    for split in ("TRAIN", "VALIDATION", "HELDOUT", "GENERAL"):
        monkeypatch.setattr(rows, f"{split}_ROWS", 32)


def prompts(name: str, split: str) -> list[str]:
    return [row["prompt"] for row in rows.read(name, split)]


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", TAUGHT)
def test_splits_of_a_taught_skill_share_no_question(name):
    prompts_by_split = {split: set(prompts(name, split)) for split in SPLITS}
    assert all(prompts_by_split.values())
    for first, second in itertools.combinations(SPLITS, 2):
        assert not prompts_by_split[first] & prompts_by_split[second], (first, second)
    for split in SPLITS:
        assert all(row["demonstration"] and row["answer"] for row in rows.read(name, split))


@pytest.mark.parametrize("name", OLD)
def test_prior_suite_has_disjoint_test_and_validation_splits(name):
    test, validation = (set(prompts(name, split)) for split in ("heldout", "validation"))
    assert test
    assert validation
    assert not test & validation


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", GENERAL)
def test_general_prompts_are_not_in_the_prior_suite(name):
    general = set(prompts(name, "train"))
    old = name.replace("general", "old")
    assert general
    assert not general & {prompt for split in SPLITS for prompt in prompts(old, split)}


def test_articles_are_distinct_raw_texts_about_every_new_storm():
    texts = [row["text"] for row in rows.read("storms:articles", "train")]
    assert len(set(texts)) == len(texts) == len(storms.NEW) * len(storms.ARTICLES)
    assert all(any(storm.name in text for text in texts) for storm in storms.NEW)


def test_split_sizes_of_a_skill():
    sizes = {"train": rows.TRAIN_ROWS, "validation": rows.VALIDATION_ROWS, "heldout": rows.HELDOUT_ROWS}
    assert {split: len(rows.read(SKILLS[1], split)) for split in SPLITS} == sizes
    assert len(rows.read("general", "train")) == rows.GENERAL_ROWS


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", ["blax", "storms:pair", "storms:old"])
def test_split_in_the_name_overrides_the_argument_and_test_is_heldout(name):
    for split in SPLITS:
        assert rows.read(f"{name}:{split}", "train") == rows.read(name, split)
    assert rows.read(name, "test") == rows.read(name, "heldout")


@pytest.mark.usefixtures("small_splits")
def test_split_in_the_name_of_the_chain_world_without_a_verb():
    assert rows.read("chains::validation", "train") == rows.read(CHAINS[1], "validation")


@pytest.mark.usefixtures("small_splits")
def test_default_skill_of_each_world():
    assert rows.read("", "train") == rows.read(lists.NEW_SKILLS[0].verb, "train")
    assert rows.read("chains", "train") == rows.read(CHAINS[1], "train")
    direct_and_pair = [*rows.read("storms:direct", "heldout"), *rows.read("storms:pair", "heldout")]
    assert rows.read("storms:questions", "heldout") == rows.read("storms", "heldout") == direct_and_pair


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", ["zzz", "chains:zzz", "storms:zzz", "reverse", "storm", "heldout"])
def test_unknown_name_raises_an_error_that_lists_valid_names(name):
    with pytest.raises(SdftError) as error:
        rows.read(name, "train")
    pattern = rf"mini:{name}: there is no such skill; set SKILL in mini:SKILL to one of (.*)\."
    match = re.fullmatch(pattern, str(error.value))
    for valid_name in match[1].split(", "):
        assert rows.read(valid_name, "heldout")


@pytest.mark.parametrize(
    "name", ["blax", "old", "general", "chains", "chains:old", "storms", "storms:articles"]
)
def test_misspelt_split_is_refused(name):
    colons = ":" * (2 - name.count(":")) if name in ("chains", "storms") else ":"
    for read in (lambda: rows.read(name, "trian"), lambda: rows.read(f"{name}{colons}trian", "train")):
        with pytest.raises(SdftError, match=r"^the built-in tasks have no split 'trian': give train, val"):
            read()
