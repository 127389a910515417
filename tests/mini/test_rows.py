"""Every name of the embedded worlds has rows, its splits share no question, and other names are refused."""

import itertools
import re

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.mini import chains, lists, rows, storms

SPLITS = ("train", "validation", "heldout")
SKILLS = ["", *(skill.verb for skill in lists.NEW_SKILLS)]
CHAINS = ["chains", *(f"chains:{skill.verb}" for skill in chains.NEW_SKILLS)]
STORMS = ["storms", *(f"storms:{kind}" for kind in storms.QUESTIONS), "storms:questions"]
LEARNED = [*SKILLS[1:], *CHAINS[1:], *STORMS]
OLD = ["old", "chains:old", "storms:old"]
GENERAL = ["general", "chains:general", "storms:general"]


@pytest.fixture
def few(monkeypatch):
    """Every list belongs to one split by its hash, so that 32 rows tell as much as 512."""
    for split in ("TRAIN", "VALIDATION", "HELDOUT", "GENERAL"):
        monkeypatch.setattr(rows, f"{split}_ROWS", 32)


def prompts(name: str, split: str) -> list[str]:
    return [row["prompt"] for row in rows.read(name, split)]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", LEARNED)
def test_the_splits_of_what_is_learned_share_no_question(name):
    parts = {split: set(prompts(name, split)) for split in SPLITS}
    assert all(parts.values())
    for one, two in itertools.combinations(SPLITS, 2):
        assert not parts[one] & parts[two], (one, two)
    for split in SPLITS:
        assert all(row["demonstration"] and row["answer"] for row in rows.read(name, split))


@pytest.mark.parametrize("name", OLD)
def test_the_prior_suite_has_a_test_and_a_validation_part(name):
    test, validation = (set(prompts(name, split)) for split in ("heldout", "validation"))
    assert test
    assert validation
    assert not test & validation


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", GENERAL)
def test_general_prompts_are_in_no_suite(name):
    found = set(prompts(name, "train"))
    old = name.replace("general", "old")
    assert found
    assert not found & {prompt for split in SPLITS for prompt in prompts(old, split)}


def test_articles_are_raw_texts_about_what_is_asked():
    texts = [row["text"] for row in rows.read("storms:articles", "train")]
    assert len(set(texts)) == len(texts) == len(storms.NEW) * len(storms.ARTICLES)
    assert all(any(storm.name in text for text in texts) for storm in storms.NEW)


def test_sizes_of_the_splits_of_a_skill():
    sizes = {"train": rows.TRAIN_ROWS, "validation": rows.VALIDATION_ROWS, "heldout": rows.HELDOUT_ROWS}
    assert {split: len(rows.read(SKILLS[1], split)) for split in SPLITS} == sizes
    assert len(rows.read("general", "train")) == rows.GENERAL_ROWS


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["blax", "storms:pair", "storms:old"])
def test_a_split_in_the_name_comes_first_and_any_other_word_means_held_out(name):
    for split in SPLITS:
        assert rows.read(f"{name}:{split}", "train") == rows.read(name, split)
    assert rows.read(name, "test") == rows.read(name, "heldout")


@pytest.mark.usefixtures("few")
def test_a_world_of_its_own_reads_splits_the_same_way():
    assert rows.read("chains::validation", "train") == rows.read(CHAINS[1], "validation")


@pytest.mark.usefixtures("few")
def test_the_first_skill_is_meant_without_a_name():
    assert rows.read("", "train") == rows.read(lists.NEW_SKILLS[0].verb, "train")
    assert rows.read("chains", "train") == rows.read(CHAINS[1], "train")
    both = [*rows.read("storms:direct", "heldout"), *rows.read("storms:pair", "heldout")]
    assert rows.read("storms:questions", "heldout") == rows.read("storms", "heldout") == both


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ["zzz", "chains:zzz", "storms:zzz", "reverse", "storm", "heldout"])
def test_an_unknown_name_is_one_sentence_with_names_that_there_are(name):
    with pytest.raises(SdftError) as caught:
        rows.read(name, "train")
    known = re.fullmatch(
        rf"mini:{name}: there is no such skill; write mini:SKILL with one of (.*)\.", str(caught.value)
    )
    for other in known[1].split(", "):
        assert rows.read(other, "heldout")
