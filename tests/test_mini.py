"""The mini world holds out what it says, and its base model is what the quickstart needs."""

from pathlib import Path

import numpy as np
import pytest

from sdft_jax import mini
from sdft_jax.mini import world
from sdft_jax.mini.make_base import LONGEST, Recipe, batches, examine, teacher_turn
from sdft_jax.mini.tokenizer import build_tokenizer

BASE = Path(mini.__file__).parent / "base"
ALL_SKILLS = world.OLD_SKILLS + world.NEW_SKILLS


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_splits_share_no_list():
    lists = {split: set() for split in world.SPLITS}
    for split, seen in lists.items():
        rng = np.random.default_rng(0)
        seen.update(" ".join(world.draw_items("digits", split, rng)) for _ in range(2000))
    assert not lists["heldout"] & lists["demonstrations"]
    assert not (lists["heldout"] | lists["demonstrations"]) & lists["base"]


def test_the_base_model_meets_no_list_of_the_other_splits(tokenizer):
    items = {item for alphabet in world.ALPHABETS.values() for item in alphabet}
    plain, shown = next(batches(Recipe(), tokenizer))
    for part in (plain, shown):
        for tokens in part["tokens"].reshape(-1, part["tokens"].shape[-1]):
            user = tokenizer.decode(tokens).split("This is an example")[0].split("<|im_end|>")[0]
            assert world.in_split([word for word in user.split() if word in items], "base")


@pytest.mark.parametrize("n", world.LENGTHS)
def test_no_two_operations_agree(n):
    items = world.ALPHABETS["letters"][:n]
    answers = {" ".join(operation(items)) for operation in world.OPERATIONS.values()}
    assert len(answers) == len(world.OPERATIONS)


def test_rows_are_deterministic_and_distinct():
    skill = world.NEW_SKILLS[0]
    rows = world.demonstrations(skill, 256, seed=1)
    assert rows == world.demonstrations(skill, 256, seed=1)
    assert len({row["prompt"] for row in rows}) == 256


def test_new_skills_differ_in_verb_operation_and_alphabet():
    for field in ("verb", "operation", "alphabet"):
        assert len({getattr(skill, field) for skill in world.NEW_SKILLS}) == len(world.NEW_SKILLS)
    assert all(skill.verb in world.NONCES for skill in world.NEW_SKILLS)


def test_score_takes_both_styles_and_no_wrong_answer():
    row = world.heldout(world.NEW_SKILLS[0], 1)[0]
    assert world.score(row["demonstration"], row)
    assert world.score(world.own_response("reverse", row["answer"]), row)
    assert not world.score(world.own_response("reverse", row["answer"][2:]), row)
    assert not world.score("", row)


def test_everything_fits_and_nothing_is_unknown(tokenizer):
    for skill in ALL_SKILLS:
        for row in world.heldout(skill, 20):
            user = teacher_turn(row["prompt"], row["demonstration"])
            for name, content in (("prompt", row["prompt"]), ("teacher_prompt", user)):
                turn = [{"role": "user", "content": content}]
                tokens = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
                assert len(tokens) <= LONGEST[name]
                assert tokenizer.unk_token_id not in tokens
            response = world.own_response(skill.operation, row["answer"])
            tokens = tokenizer(response)["input_ids"]
            assert len(tokens) < LONGEST["completion"]
            assert tokenizer.decode(tokens, skip_special_tokens=True) == response


def test_the_base_model_knows_what_it_should():
    transformers = pytest.importorskip("transformers")
    from sdft_jax.models import load_model

    model, params = load_model(BASE)[:2]
    result = examine(params, model, transformers.AutoTokenizer.from_pretrained(BASE))
    assert result["old skills"] > 0.95
    assert result["new skills, shown"] > 0.95
    assert result["new skills"] < 0.3


def test_transformers_computes_the_same_logits():
    torch = pytest.importorskip("torch")
    import transformers

    from sdft_jax.models import load_model

    model, params = load_model(BASE)[:2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    prompts = [world.heldout(skill, 1)[0]["prompt"] for skill in ALL_SKILLS]
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tokens = np.array([row for row in encoded if len(row) == len(encoded[0])])
    reference = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    theirs = reference(torch.tensor(tokens)).logits.detach().numpy()
    ours = model.logits(params, tokens, np.ones_like(tokens, bool))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
