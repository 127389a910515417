"""The list world: disjoint splits, row formats and scores, and the accuracy of its base models."""

import json
from pathlib import Path

import numpy as np
import pytest

from sdft_jax import mini
from sdft_jax.mini import lists
from sdft_jax.mini.curriculum import teacher_turn
from sdft_jax.mini.make_base import batches, examine
from sdft_jax.mini.tokenizer import build_tokenizer
from sdft_jax.types import Sequences

BASE = Path(mini.__file__).parent / "base"
BASES = BASE.parent / "bases"
ALL_SKILLS = lists.OLD_SKILLS + lists.NEW_SKILLS


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_splits_share_no_list():
    drawn = {split: set() for split in lists.SPLITS}
    for split, seen in drawn.items():
        rng = np.random.default_rng(0)
        seen.update(" ".join(lists.draw_items("digits", split, rng)) for _ in range(2000))
    assert not drawn["heldout"] & drawn["demonstrations"]
    assert not (drawn["heldout"] | drawn["demonstrations"]) & drawn["base"]


def test_training_batches_have_only_lists_of_the_base_split(tokenizer):
    items = {item for alphabet in lists.ALPHABETS.values() for item in alphabet}
    for arrays in next(batches(lists.curriculum(), tokenizer, seed=0)).values():
        for tokens in arrays["tokens"].reshape(-1, arrays["tokens"].shape[-1]):
            user = tokenizer.decode(tokens).split("This is an example")[0].split("<|im_end|>")[0]
            assert lists.in_split([word for word in user.split() if word in items], "base")


@pytest.mark.parametrize("n", lists.LENGTHS)
def test_operations_have_distinct_results(n):
    items = lists.ALPHABETS["letters"][:n]
    answers = {" ".join(operation(items)) for operation in lists.OPERATIONS.values()}
    assert len(answers) == len(lists.OPERATIONS)


def test_rows_are_deterministic_and_distinct():
    skill = lists.NEW_SKILLS[0]
    rows = lists.demonstrations(skill, 256, seed=1)
    assert rows == lists.demonstrations(skill, 256, seed=1)
    assert len({row["prompt"] for row in rows}) == 256


def test_new_skills_differ_in_verb_operation_and_alphabet():
    for field in ("verb", "operation", "alphabet"):
        assert len({getattr(skill, field) for skill in lists.NEW_SKILLS}) == len(lists.NEW_SKILLS)
    assert all(skill.verb in lists.NONCES for skill in lists.NEW_SKILLS)


def test_score_accepts_both_styles_and_rejects_wrong_answers():
    row = lists.heldout(lists.NEW_SKILLS[0], 1)[0]
    assert lists.score(row["demonstration"], row)
    assert lists.score(lists.own_response("reverse", row["answer"]), row)
    assert not lists.score(lists.own_response("reverse", row["answer"][2:]), row)
    assert not lists.score("", row)


def test_texts_fit_the_limits_and_have_no_unknown_tokens(tokenizer):
    kinds = lists.curriculum().kinds
    for skill in ALL_SKILLS:
        for row in lists.heldout(skill, 20):
            user = teacher_turn(row["prompt"], row["demonstration"])
            for name, content in (("plain", row["prompt"]), ("shown", user)):
                turn = [{"role": "user", "content": content}]
                tokens = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
                assert len(tokens) <= kinds[name].prompt
                assert tokenizer.unk_token_id not in tokens
            response = lists.own_response(skill.operation, row["answer"])
            tokens = tokenizer(response)["input_ids"]
            assert len(tokens) < kinds["plain"].response
            assert tokenizer.decode(tokens, skip_special_tokens=True) == response


def lists_of(rows):
    """Return the list in the prompt of each row, as a tuple of its items."""
    items = {item for alphabet in lists.ALPHABETS.values() for item in alphabet}
    return [tuple(word for word in row["prompt"].split() if word in items) for row in rows]


def test_validation_shares_no_list_with_any_test():
    tests = lists_of(lists.old()) + [x for s in lists.NEW_SKILLS for x in lists_of(lists.heldout(s, 256))]
    rows = [row for skill in lists.NEW_SKILLS for row in lists.validation(skill, 256)]
    validation = lists_of(rows + lists.old("validation"))
    assert not set(validation) & set(tests)
    assert all(lists.in_split(items, "heldout") for items in validation)
    assert len({row["prompt"] for row in rows}) == 256 * len(lists.NEW_SKILLS)


def test_prior_suite_has_eight_rows_of_each_old_skill_in_each_split():
    for split in ("heldout", "validation"):
        rows = lists.old(split)
        assert len({row["prompt"] for row in rows}) == len(rows) == 8 * len(lists.OLD_SKILLS)
    rows = lists.heldout(lists.OLD_SKILLS[0], 8, seed=0)
    assert lists.old()[:8] == [{**row, "skill": "reverse"} for row in rows]


def test_general_prompts_use_old_skills_and_lists_of_the_base_split():
    rows = lists.general(200)
    assert all(lists.in_split(items, "base") for items in lists_of(rows))
    assert not any(nonce in row["prompt"].split() for row in rows for nonce in lists.NONCES)
    assert rows != lists.general(200, seed=1)


@pytest.mark.parametrize("base", [BASE, *sorted(BASES.glob("lists-*"))], ids=lambda path: path.name)
def test_base_models_have_the_vocabulary_of_the_world(base, tokenizer):
    saved = json.loads((base / "tokenizer.json").read_text())
    assert saved["model"]["vocab"] == tokenizer.get_vocab()


def test_wrong_thought_is_masked_and_the_answer_follows_from_it():
    rng = np.random.default_rng(0)
    texts = [lists.draw_text("plain", rng) for _ in range(300)]
    wrong = [text for text in texts if text.masked]
    assert 10 < len(wrong) < 60
    for text in wrong:
        (position,) = text.masked
        thought = text.response.split()[position]
        items = list(lists_of([{"prompt": text.user}])[0])
        assert text.response == lists.own_response(thought, " ".join(lists.OPERATIONS[thought](items)))


@pytest.mark.parametrize(
    ("base", "old", "shown"),
    [
        (BASE, (0.95, 1.0), (0.95, 1.0)),
        (BASES / "lists-medium", (0.6, 0.65), (0.5, 0.55)),
        (BASES / "lists-small", (0.1, 0.15), (0.25, 0.3)),
    ],
    ids=["large", "medium", "small"],
)
def test_accuracy_of_the_base_models(base, old, shown):
    transformers = pytest.importorskip("transformers")
    from sdft_jax.models import load_model

    model, params = load_model(base)[:2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    result = examine(params, model, tokenizer, lists.curriculum())
    assert old[0] < result["old skills"] <= old[1]
    assert shown[0] < result["new skills, shown"] <= shown[1]
    assert result["new skills"] < 0.3


def test_logits_match_transformers():
    torch = pytest.importorskip("torch")
    import transformers

    from sdft_jax.models import load_model

    model, params = load_model(BASE)[:2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    prompts = [lists.heldout(skill, 1)[0]["prompt"] for skill in ALL_SKILLS]
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tokens = np.array([row for row in encoded if len(row) == len(encoded[0])])
    reference = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    expected = reference(torch.tensor(tokens)).logits.detach().numpy()
    actual = model.logits(params, Sequences(tokens, np.ones_like(tokens, bool)))
    np.testing.assert_allclose(actual, expected, atol=2e-4)
