"""The chain world: operations, disjoint splits, training texts and the accuracy of the base model."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdft_jax import mini
from sdft_jax.mini import chains
from sdft_jax.mini.make_base import batches, encode, examine
from sdft_jax.mini.tokenizer import build_tokenizer

BASE = Path(mini.__file__).parent / "bases" / "chains"
SPLITS = ("heldout", "validation", "demonstrations", "base")


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ("reverse", "e d c b a"),
        ("rotate", "b c d e a"),
        ("spin", "c d e a b"),
        ("swap", "b a c d e"),
        ("curtail", "a b c d"),
    ],
)
def test_operation_results(operation, result):
    assert chains.OPERATIONS[operation](list("abcde")) == result.split()


def test_operation_results_covers_every_operation():
    assert list(chains.OPERATIONS) == ["reverse", "rotate", "spin", "swap", "curtail"]


def test_prompt_response_and_row_of_a_chain():
    operations = ("reverse", "curtail", "rotate")
    chain = chains.Chain("letters", (*operations[:2], "blax"), operations, tuple("abcde"))
    assert chain.prompt == "first reverse then curtail then blax : a b c d e"
    assert chain.response == "<think> reverse e d c b a ; curtail e d c b ; rotate d c b e </think> d c b e"
    assert chain.row == {"prompt": chain.prompt, "demonstration": "= d c b e !", "answer": "d c b e"}
    assert chains.Chain("digits", ("swap",), ("swap",), tuple("1234")).prompt == "digits 1 2 3 4 ; swap"


@pytest.mark.parametrize("n", [4, 5])
def test_first_two_items_of_a_result_identify_the_operation(n):
    results = {tuple(operation(list("abcde"[:n]))[:2]) for operation in chains.OPERATIONS.values()}
    assert len(results) == len(chains.OPERATIONS)


def test_splits_are_a_partition_and_rows_use_lists_of_their_split():
    rng = np.random.default_rng(0)
    lists = [tuple(map(str, rng.permutation(10)[: rng.integers(4, 6)])) for _ in range(500)]
    assert all(sum(chains.in_split(items, split) for split in SPLITS) == 1 for items in lists)
    skill = chains.NEW_SKILLS[0]
    for split in SPLITS[:3]:
        assert all(chains.in_split(chain.items, split) for chain in chains.chains(skill, split, 60))
    for split in SPLITS[:2]:
        assert all(chains.in_split(chain.items, split) for chain in chains.old_chains(split))
    assert all(chains.in_split(_items(row), "base") for row in chains.general(60))


def _items(row):
    alphabet = "".join(chains.ALPHABETS.values())
    return [word for word in row["prompt"].split() if word in alphabet]


@pytest.mark.parametrize("skill", chains.NEW_SKILLS, ids=lambda skill: skill.verb)
def test_one_third_of_a_new_skill_is_known_chains_and_the_rest_end_in_its_verb(skill):
    heldout = chains.chains(skill, "heldout", 90)
    known = [chain for chain in heldout if skill.verb not in chain.verbs]
    assert len(known) == 30
    assert len({chain.prompt for chain in heldout}) == 90
    assert all(chain.verbs == chain.operations for chain in known)
    for chain in set(heldout) - set(known):
        assert (chain.verbs[-1], chain.operations[-1]) == (skill.verb, skill.operation)
        assert chain.verbs[:-1] == chain.operations[:-1]
    assert {len(chain.verbs) for chain in heldout} == {2, 3}
    assert skill.verb in chains.NONCES


def test_every_step_starts_from_at_least_four_items():
    for chain in chains.chains(chains.NEW_SKILLS[0], "demonstrations", 300):
        assert all(len(items) >= 4 for items in [chain.items, *chain.lists[:-1]])


def test_prior_suite_has_no_task_of_a_new_skill():
    for split in ("heldout", "validation"):
        suite = chains.old_chains(split)
        assert len({chain.prompt for chain in suite}) == len(suite) == len(chains.old(split)) == 320
        assert all(chain.verbs == chain.operations for chain in suite)
        assert all(chain.alphabet == "digits" for chain in suite if len(chain.verbs) > 1)


def test_prior_suite_rows_have_their_skill():
    counts = Counter(row["skill"] for row in chains.old())
    assert counts == {"chains of 2": 120, "chains of 3": 120, **dict.fromkeys(chains.OPERATIONS, 16)}
    for row in chains.old():
        verbs = [word for word in row["prompt"].split() if word in chains.OPERATIONS]
        assert row["skill"] == (verbs[0] if len(verbs) == 1 else f"chains of {len(verbs)}")


def test_score_accepts_both_styles_and_rejects_wrong_answers():
    chain = chains.chains(chains.NEW_SKILLS[0], "heldout", 2)[1]
    wrong = chains.Chain(chain.alphabet, chain.verbs, (*chain.operations[:-1], "curtail"), chain.items)
    assert chains.score(chain.response, chain.row)
    assert chains.score(chain.row["demonstration"], chain.row)
    assert not chains.score(wrong.response, chain.row)
    assert not chains.score(wrong.row["demonstration"], chain.row)
    assert not chains.score(chain.response.split("</think>")[0], chain.row)  # truncated in the thought
    assert not chains.score("", chain.row)


def test_rows_are_deterministic_and_seeded():
    skill = chains.NEW_SKILLS[1]
    for rows in (chains.demonstrations, chains.validation, chains.heldout):
        assert rows(skill, 30) == rows(skill, 30)
        assert rows(skill, 30) != rows(skill, 30, seed=1)


def test_masked_token_is_the_last_operation():
    rng = np.random.default_rng(0)
    texts = [chains.draw_text("shown", rng) for _ in range(300)]
    wrong = [text for text in texts if text.masked]
    assert 10 < len(wrong) < 60
    for text in wrong:
        words = text.response.split()
        positions = [i for i, word in enumerate(words) if word in chains.OPERATIONS]
        assert text.masked == (positions[-1],)
        steps = text.response.removeprefix("<think> ").split(" </think>")[0].split(" ; ")
        thought = [step.split() for step in steps]
        start = thought[-2][1:] if len(thought) > 1 else _items({"prompt": text.user.split("This is")[0]})
        assert chains.OPERATIONS[thought[-1][0]](start) == thought[-1][1:]


def test_curriculum_fits_its_limits_and_has_no_unknown_tokens():
    curriculum = chains.curriculum()
    tokenizer = build_tokenizer(curriculum.words)
    for name, kind in curriculum.kinds.items():
        tokens = next(batches(curriculum, tokenizer, seed=1))[name]["tokens"]
        assert tokens.shape[1:] == (kind.rows, kind.prompt + kind.response)
        assert not (tokens == tokenizer.unk_token_id).any()
    for texts in curriculum.examine().values():
        arrays = encode(texts, curriculum.kinds["shown"], tokenizer)
        assert not (arrays["tokens"] == tokenizer.unk_token_id).any()


def test_base_model_solves_known_chains_and_infers_the_operation_from_the_answer():
    from sdft_jax.models import load_model
    from sdft_jax.models.hf.tokenizer import load_tokenizer

    model, params = load_model(BASE)[:2]
    exam = {name: texts[::3] for name, texts in chains.exam().items()}
    curriculum = replace(chains.curriculum(), examine=lambda: exam)
    result = examine(params, model, load_tokenizer(str(BASE)), curriculum)
    assert result["prior suite"] > 0.95
    assert result["new skills, known chains"] > 0.95
    assert result["new skills, nonce chains, shown"] > 0.9
    assert result["new skills, nonce chains"] < 0.5
