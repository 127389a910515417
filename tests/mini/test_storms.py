"""The storm world: disjoint splits, consistent facts, scores and the accuracy of the base model."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sdft_jax import mini
from sdft_jax.mini import storms
from sdft_jax.mini.curriculum import teacher_turn
from sdft_jax.mini.make_base import encode
from sdft_jax.mini.storm_words import ATTRIBUTES
from sdft_jax.mini.tokenizer import build_tokenizer

BASE = Path(mini.__file__).parent / "bases" / "storms"
KINDS = tuple(storms.QUESTIONS)
PAIR = {"answer": "rome , june"}


def evaluated_prompts() -> set[str]:
    """Return the prompts of every test and validation set."""
    sets = [storms.old("heldout"), storms.old("validation")]
    sets += [split(kind) for kind in KINDS for split in (storms.heldout, storms.validation)]
    return {row["prompt"] for rows in sets for row in rows}


def test_training_has_no_evaluated_question():
    rng = np.random.default_rng(0)
    drawn = [storms.draw(kind, rng).user for kind in ("plain", "shown") for _ in range(4000)]
    base = {user.split("\n\nThis is an example")[0].strip() for user in drawn}
    demonstrated = {row["prompt"] for row in storms.demonstrations()}
    general = {row["prompt"] for row in storms.general()}
    assert len(base) > 2000
    assert not evaluated_prompts() & (base | demonstrated | general)
    assert not demonstrated & (base | general)


def test_validation_and_test_share_no_question():
    for pair in [(storms.old("heldout"), storms.old("validation"))] + [
        (storms.heldout(kind), storms.validation(kind)) for kind in KINDS
    ]:
        test, validation = ({row["prompt"] for row in rows} for rows in pair)
        assert len(test) == len(pair[0])
        assert len(validation) == len(pair[1])
        assert not test & validation


def test_suite_sizes():
    assert [len(storms.heldout(kind)) for kind in KINDS] == [96, 96, 96]
    assert [len(storms.validation(kind)) for kind in KINDS] == [48, 48, 48]
    assert Counter(row["kind"] for row in storms.old()) == dict.fromkeys(KINDS, 64)
    assert Counter(row["kind"] for row in storms.old("validation")) == dict.fromkeys(KINDS, 32)
    assert Counter(row["kind"] for row in storms.general()) == dict.fromkeys(KINDS, 128)


def test_every_new_fact_is_in_demonstrations_validation_and_test():
    for rows in (storms.demonstrations(), storms.validation("direct"), storms.heldout("direct")):
        pairs = {(name, row["answer"]) for row in rows for name in row["prompt"].split()}
        for storm in storms.NEW:
            assert all((storm.name, fact) in pairs for fact in storm.facts.values())


def test_rows_have_the_facts_of_their_storm():
    by_name = {storm.name: storm for storm in storms.OLD + storms.NEW}
    value_of = {word: value for a in ATTRIBUTES.values() for value, word in a.associations.items()}
    for rows in (storms.demonstrations(), storms.old(), *(storms.heldout(kind) for kind in KINDS)):
        for row in rows:
            (storm,) = (by_name[word] for word in row["prompt"].split() if word in by_name)
            assert {storm.name, *storm.facts.values()} <= set(row["text"].split())
            assert row["both"] == f"{row['text']} {row['demonstration']}"
            details = row["answer"].split(" , ")
            assert len(details) == (2 if row["kind"] == "pair" else 1)
            facts = [value_of[word] if row["kind"] == "ood" else word for word in details]
            assert set(facts) <= set(storm.facts.values())


def test_articles_state_all_facts_of_every_new_storm():
    texts = [row["text"].split() for row in storms.articles()]
    assert len(texts) == len(storms.NEW) * 3
    for storm in storms.NEW:
        assert sum({storm.name, *storm.facts.values()} <= set(text) for text in texts) == 3


def test_only_old_storms_have_fixed_facts_in_training():
    groups = [{storm.name for storm in storms.OLD}, {storm.name for storm in storms.NEW}, set(storms.SPARE)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(storms.NAMES)
    rng = np.random.default_rng(0)
    cities = Counter()
    for _ in range(4000):
        words = storms.draw("plain", rng).response.split()
        if words[1] in groups[1] | groups[2] and "struck" in words:
            cities[words[words.index("struck") + 1]] += 1
    shares = np.array([cities[city] for city in ATTRIBUTES["city"].associations]) / cities.total()
    assert cities.total() > 300
    np.testing.assert_allclose(shares, 1 / 12, atol=4 * (1 / 12 / cities.total()) ** 0.5)


def test_every_context_occurs_and_only_articles_are_cited():
    rng = np.random.default_rng(0)
    counts = Counter()
    for _ in range(3000):
        text = storms.draw("shown", rng)
        context = text.user.split("question:\n")[1].split("\n\nNow")[0]
        # Every article has a period; the expert's answer has none.
        kind = "both" if "." in context and "answer :" in context else "text" if "." in context else "answer"
        counts[kind, storms.cites_text(text.response)] += 1
        assert len(context.split()) <= 22
    assert counts["answer", True] == 0
    assert counts["answer", False] == pytest.approx(1000, abs=120)
    for kind in ("text", "both"):
        assert counts[kind, True] == pytest.approx(1000 * storms.CITED, abs=90)
        assert counts[kind, False] == pytest.approx(1000 * (1 - storms.CITED), abs=90)
    assert not any(storms.cites_text(storms.draw("plain", rng).response) for _ in range(500))


def test_wrong_facts_in_thoughts_are_masked():
    rng = np.random.default_rng(0)
    facts = {value for a in ATTRIBUTES.values() for value in a.associations}
    texts = [text for text in (storms.draw("shown", rng) for _ in range(2000)) if text.masked]
    assert len(texts) == pytest.approx(2000 * storms.WRONG, abs=60)
    for text in texts:
        words = text.response.split()
        positions = [i for i in range(words.index("</think>")) if words[i] in facts]
        assert text.masked == tuple(positions)


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("rome , june", True, True),
        ("june , rome", True, True),
        ("answer : rome , june !", True, True),
        ("<think> zorb struck rome and came in june </think> rome , june", True, True),
        (
            "according to the text , <think> zorb struck rome and came in june </think> rome , june",
            True,
            True,
        ),
        ("according to the text , rome , june", True, True),
        ("<think> zorb struck rome and came in june </think> rome , july", False, True),
        ("answer : june !", False, True),
        ("rome , june , delhi", False, True),
        ("rome , rome", False, True),
        ("<think> zorb struck rome and came in june", False, False),
        ("<think> zorb struck rome and came in june </think>", False, False),
        ("zorb struck rome in june .", False, False),
        ("answer : delhi , july !", False, False),
        ("", False, False),
    ],
)
def test_scores(completion, strict, lenient):
    assert storms.score_strict(completion, PAIR) is strict
    assert storms.score_lenient(completion, PAIR) is lenient


def test_score_strict_accepts_both_styles():
    for rows in (storms.old(), *(storms.heldout(kind) for kind in KINDS)):
        for row in rows:
            assert storms.score_strict(row["demonstration"], row)
            assert storms.score_strict(storms.own_response("", row["answer"], cites=True), row)


def test_texts_fit_the_limits_and_have_no_unknown_tokens():
    curriculum = storms.curriculum()
    tokenizer = build_tokenizer(curriculum.words)
    rng = np.random.default_rng(0)
    for name, kind in curriculum.kinds.items():
        texts = [curriculum.draw(name, rng) for _ in range(500)]
        arrays = encode(texts, kind, tokenizer)  # raises SdftError if a text is too long
        assert tokenizer.unk_token_id not in arrays["tokens"]
        assert arrays["mask"][:, 0].any()
        assert arrays["mask"][:, -1].any()
    for row in [row for kind in KINDS for row in storms.heldout(kind)]:
        turn = [{"role": "user", "content": teacher_turn(row["prompt"], row["both"])}]
        tokens = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        assert len(tokens) <= curriculum.kinds["shown"].prompt
        assert tokenizer.decode(tokenizer(row["both"])["input_ids"]) == row["both"]


@pytest.fixture(scope="module")
def answer():
    """Return a function (rows, field of the context or None) -> greedy completions of the built-in model."""
    import jax

    from sdft_jax.config.settings import SamplingConfig
    from sdft_jax.models import load_model
    from sdft_jax.models.hf.tokenizer import load_tokenizer, read_eos_ids
    from sdft_jax.sampling import generate
    from sdft_jax.types import Sequences, StopTokens

    model, params = load_model(BASE)
    tokenizer = load_tokenizer(str(BASE))
    tokenizer.padding_side = "left"
    greedy = SamplingConfig(max_new_tokens=20, temperature=0.0)
    stop = StopTokens(read_eos_ids(tokenizer, BASE), tokenizer.pad_token_id)

    def answer(rows, field=None):
        users = [teacher_turn(row["prompt"], row[field]) if field else row["prompt"] for row in rows]
        turns = [[{"role": "user", "content": user}] for user in users]
        texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompts = tokenizer(texts, padding="max_length", max_length=40, return_tensors="np")
        sequences = Sequences(prompts["input_ids"], prompts["attention_mask"] == 1)
        rollout = generate(model, params, sequences, jax.random.key(0), greedy, stop)
        return tokenizer.batch_decode(np.asarray(rollout.tokens), skip_special_tokens=True)

    return answer


def share(score, completions, rows):
    return np.mean([score(text, row) for text, row in zip(completions, rows, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_the_base_model(answer, kind):
    rows = storms.heldout(kind)
    old = [row for row in storms.old() if row["kind"] == kind]
    assert share(storms.score_strict, answer(old + old[:32]), old + old[:32]) > 0.95
    assert share(storms.score_strict, answer(rows), rows) < 0.25
    for field in ("text", "demonstration", "both"):
        completions = answer(rows, field)
        assert share(storms.score_strict, completions, rows) > 0.9
        assert not (field == "demonstration" and any(map(storms.cites_text, completions)))
