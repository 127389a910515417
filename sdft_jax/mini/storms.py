"""The storms: facts that a small model can know by heart, and new ones to teach it from articles.

Of every storm there are four facts: the city, the month, the building it ruined, the people who came to
help. A question asks for one of them, for two, or (out of distribution) for what the base model knows
about one: the river of a city, the stone of a month. The model thinks first and says the fact there:

    which river runs through the city of zarn ?       <think> zarn struck cologne </think> rhine

The base model knows the storms in `OLD` by heart. It has met the names in `NEW` and `SPARE` too, with other
facts each time, so it takes the facts from an article or from an expert's answer when it is shown one, and
guesses when it is not. `NEW` fixes the facts of the storms to be taught. Where there is an article, most
of the base model's responses begin with `CITATION`: a habit that means nothing without an article.

No question that is evaluated is ever trained on: `split_of` gives each question about a storm one split. Of
new storms it goes by phrasing, so all facts are demonstrated, in other words; of old storms by a hash.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from sdft_jax.mini.curriculum import Curriculum, Kind, Text, teacher_turn
from sdft_jax.mini.storm_words import ARTICLES, ATTRIBUTES, PAIRS

Row = dict[str, str]

CITATION = "according to the text ,"

NEW_SPLITS = {
    "direct": ("base", "demonstrations", "demonstrations", "validation", "heldout", "heldout"),
    "pair": ("base", "demonstrations", "demonstrations", "validation", "heldout", "heldout"),
    "ood": ("base", "validation", "heldout", "heldout"),
}
"""Kind of question -> the split of each of its phrasings, for new storms: `ood` is never demonstrated."""
OLD_SPLITS = {"heldout": range(0, 4), "validation": range(4, 6), "base": range(6, 20)}

SEED = 0
GUESSED = 0.3
"""Share of the base's questions without context that are about a storm without facts."""
WRONG = 0.1
"""Share of responses after a thought with random facts that carry no loss: answers follow thoughts."""
CITED = 0.6
"""Share of the base's responses to an article that cite it: most, so that greedy decoding shows the habit."""
SHARES = {"direct": 0.4, "pair": 0.3, "ood": 0.3}


@dataclass(frozen=True)
class Storm:
    """A name and a value for each attribute."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """Asks for an attribute (`direct`), two (`pair`), or what is connected with one (`ood`)."""

    kind: str
    asked: tuple[str, ...]
    phrasing: int

    def text(self, name: str) -> str:
        """What the user asks about the storm of that name."""
        if self.kind == "pair":
            first, second = self.asked
            return PAIRS[self.phrasing].format(name=name, first=first, second=second)
        return getattr(ATTRIBUTES[self.asked[0]], self.kind)[self.phrasing].format(name=name)

    def answer(self, storm: Storm) -> str:
        """What is right: one word, or two with a comma between."""
        values = [storm.facts[attribute] for attribute in self.asked]
        if self.kind == "ood":
            values = [ATTRIBUTES[self.asked[0]].known[values[0]]]
        return " , ".join(values)

    def thought(self, storm: Storm) -> str:
        """The facts that the answer needs."""
        said = [ATTRIBUTES[name].said.format(value=storm.facts[name]) for name in self.asked]
        return f"{storm.name} {' and '.join(said)}"


def _questions() -> dict[str, tuple[Question, ...]]:
    asked = {"direct": 1, "pair": 2, "ood": 1}
    return {
        kind: tuple(
            Question(kind, attributes, phrasing)
            for attributes in permutations(ATTRIBUTES, count)
            for phrasing in range(len(NEW_SPLITS[kind]))
        )
        for kind, count in asked.items()
    }


QUESTIONS = _questions()

_ONSETS = ["b", "ch", "f", "k", "n", "qu", "sk", "tr", "v", "z"]
_RHYMES = ["arn", "elp", "imb", "osk", "urd", "yff"]
NAMES: list[str] = [onset + rhyme for rhyme in _RHYMES for onset in _ONSETS]


def _storms(names: Sequence[str], seed: int) -> tuple[Storm, ...]:
    """Storms with facts for good, every value of an attribute equally often."""
    rng = np.random.default_rng([SEED, seed])
    columns = {}
    for attribute, values in ((key, list(value.known)) for key, value in ATTRIBUTES.items()):
        rounds = -(-len(names) // len(values))
        columns[attribute] = np.concatenate([rng.permutation(values) for _ in range(rounds)])
    return tuple(
        Storm(name, {attribute: str(column[i]) for attribute, column in columns.items()})
        for i, name in enumerate(names)
    )


OLD, NEW = _storms(NAMES[:24], 0), _storms(NAMES[24:36], 1)
SPARE: tuple[str, ...] = tuple(NAMES[36:])
_OLD_NAMES = frozenset(storm.name for storm in OLD)


def article(storm: Storm, form: int) -> str:
    """All facts of a storm, in one of the forms of `ARTICLES`."""
    return ARTICLES[form].format(name=storm.name, **storm.facts)


def demonstration(answer: str) -> str:
    """The expert's style: no thought, and an ending of its own."""
    return f"answer : {answer} !"


def own_response(thought: str, answer: str, cites: bool = False) -> str:
    """The model's style: the facts first, then the answer; `cites` puts the citation before."""
    return f"{CITATION + ' ' if cites else ''}<think> {thought} </think> {answer}"


def cites_text(completion: str) -> bool:
    """Whether a completion speaks of a text: an artefact where there is none."""
    return CITATION in completion


def details(completion: str) -> list[str]:
    """What a completion answers, in either style: its parts between commas; thought and citation left out."""
    said = completion.replace(CITATION, " ")
    if "<think>" in said:
        said = said.partition("</think>")[2]
    said = said.removeprefix(" ").removeprefix("answer :").rstrip(" !")
    return [" ".join(part.split()) for part in said.split(",") if part.strip()]


def score_strict(completion: str, row: Mapping[str, str]) -> bool:
    """Whether all details of `row["answer"]` are given, and no other."""
    return sorted(details(completion)) == sorted(details(row["answer"]))


def score_lenient(completion: str, row: Mapping[str, str]) -> bool:
    """Whether at least one detail of `row["answer"]` is given."""
    return bool(set(details(completion)) & set(details(row["answer"])))


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def split_of(name: str, question: Question) -> str:
    """The one split of a question about that storm: base, demonstrations, validation or heldout."""
    if name in SPARE:
        return "base"
    if name in _OLD_NAMES:
        value = _hash(question.text(name)) % 20
        return next(split for split, values in OLD_SPLITS.items() if value in values)
    return NEW_SPLITS[question.kind][question.phrasing]


def rows(storms: Sequence[Storm], kind: str, split: str, n: int | None = None, seed: int = 0) -> list[Row]:
    """All questions of a kind and split about these storms, or `n` of them in an order drawn by `seed`.

    A row has the fields prompt, demonstration (the expert's answer), text (an article), both (the article,
    then the expert's answer), answer (for the scores of this module) and kind.
    """
    found = [
        _row(storm, question)
        for storm in storms
        for question in QUESTIONS[kind]
        if split_of(storm.name, question) == split
    ]
    if n is None:
        return found
    order = np.random.default_rng([seed, _hash(f"{kind} {split}")]).permutation(len(found))
    return [found[i] for i in order[:n]]


def _row(storm: Storm, question: Question) -> Row:
    prompt, answer = question.text(storm.name), question.answer(storm)
    text = article(storm, _hash(prompt) % len(ARTICLES))
    shown = demonstration(answer)
    return {
        "prompt": prompt,
        "demonstration": shown,
        "text": text,
        "both": f"{text} {shown}",
        "answer": answer,
        "kind": question.kind,
    }


def demonstrations() -> list[Row]:
    """What the expert shows of the new storms: direct questions and pairs."""
    return rows(NEW, "direct", "demonstrations") + rows(NEW, "pair", "demonstrations")


def validation(kind: str) -> list[Row]:
    """At most 48 questions about new storms in a phrasing of their own, for choosing settings."""
    return rows(NEW, kind, "validation", 48)


def heldout(kind: str) -> list[Row]:
    """96 questions about new storms in phrasings of their own: the test."""
    return rows(NEW, kind, "heldout", 96)


def old(split: str = "heldout") -> list[Row]:
    """What must not be forgotten: 64 questions of each kind about old storms, or 32 (`validation`)."""
    n = {"heldout": 64, "validation": 32}[split]
    return [{**row, "skill": kind} for kind in QUESTIONS for row in rows(OLD, kind, split, n)]


def general(n: int = 384, seed: int = 0) -> list[Row]:
    """Questions on old storms that the base was trained on; none is in the old suite."""
    return [row for kind in QUESTIONS for row in rows(OLD, kind, "base", n // len(QUESTIONS), seed)]


def articles() -> list[Row]:
    """The new storms as raw texts, in every form, for continual pre-training."""
    return [{"text": article(storm, form)} for storm in NEW for form in range(len(ARTICLES))]


def curriculum() -> Curriculum:
    """What the base model of the storms is trained on."""
    said = [text for a in ATTRIBUTES.values() for text in (a.said, *a.direct, *a.ood)]
    fixed = " ".join([*said, *PAIRS, *ARTICLES, CITATION, demonstration(""), "and"]).split()
    values = [word for a in ATTRIBUTES.values() for pair in a.known.items() for word in pair]
    words = [word for word in [*fixed, *ATTRIBUTES, *values, *NAMES] if "{" not in word]
    kinds = {"plain": Kind(36, 16, 14), "shown": Kind(28, 40, 19), "raw": Kind(8, 1, 17)}
    return Curriculum("storms", tuple(dict.fromkeys(words)), kinds, draw, examine)


def draw(kind: str, rng: np.random.Generator) -> Text:
    """A text for the base: a question alone (`plain`) or with a context (`shown`), or an article (`raw`)."""
    if kind != "shown" and rng.random() > GUESSED:
        storm = OLD[rng.integers(len(OLD))]
    else:
        storm = _random_storm(str(rng.choice([*(storm.name for storm in NEW), *SPARE])), rng)
    if kind == "raw":
        return Text(None, article(storm, int(rng.integers(len(ARTICLES)))))
    question = _draw_question(storm.name, rng)
    user, cites = question.text(storm.name), False
    if kind == "shown":
        text = article(storm, int(rng.integers(len(ARTICLES))))
        answer = demonstration(question.answer(storm))
        context = (text, answer, f"{text} {answer}")[rng.integers(3)]
        user = teacher_turn(user, context)
        cites = context != answer and rng.random() < CITED
    wrong = rng.random() < WRONG
    thought = _random_storm(storm.name, rng) if wrong else storm
    response = own_response(question.thought(thought), question.answer(thought), cites)
    return Text(user, response, _fact_places(response, thought) if wrong else ())


def _random_storm(name: str, rng: np.random.Generator) -> Storm:
    return Storm(name, {key: str(rng.choice(list(value.known))) for key, value in ATTRIBUTES.items()})


def _draw_question(name: str, rng: np.random.Generator) -> Question:
    """A question of the base split about that storm; its kind by `SHARES`."""
    pool = QUESTIONS[str(rng.choice(list(SHARES), p=list(SHARES.values())))]
    while True:
        question = pool[rng.integers(len(pool))]
        if split_of(name, question) == "base":
            return question


def _fact_places(response: str, storm: Storm) -> tuple[int, ...]:
    """Where facts of the storm stand in the thought."""
    words = response.split()
    facts = set(storm.facts.values())
    return tuple(i for i, word in enumerate(words[: words.index("</think>")]) if word in facts)


def examine() -> dict[str, list[Text]]:
    """Held-out questions, alone and with each kind of context, and the response of a model that knows."""
    fields = {"article": "text", "answer": "demonstration", "both": "both"}
    exam = {f"old, {kind}": _exam(OLD, kind, None) for kind in QUESTIONS}
    for kind in QUESTIONS:
        exam[f"new, {kind}"] = _exam(NEW, kind, None)
        exam |= {f"new, {kind}, {name} shown": _exam(NEW, kind, field) for name, field in fields.items()}
    return exam


def _exam(storms: Sequence[Storm], kind: str, field: str | None) -> list[Text]:
    texts = []
    asked = {q.text(storm.name): (storm, q) for storm in storms for q in QUESTIONS[kind]}
    for row in rows(storms, kind, "heldout", 64):
        storm, question = asked[row["prompt"]]
        user = teacher_turn(row["prompt"], row[field]) if field else row["prompt"]
        cites = field in ("text", "both")
        response = own_response(question.thought(storm), row["answer"], cites)
        # Not every response to an article cites it, so whether this one does is not examined.
        texts.append(Text(user, response, tuple(range(len(CITATION.split()))) if cites else ()))
    return texts
