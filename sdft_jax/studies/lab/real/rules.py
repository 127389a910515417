"""A shared rule: every answer has one form. All rows have the same context, the rule with four examples.

Trained on questions; evaluated on other questions, and on requests, a kind of prompt that nobody
demonstrated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

FORM = "The answer is **{}**."
CONTEXT = "Give the answer in bold.\n\n" + "\n\n".join(
    f"Question: {question}\nAnswer: {FORM.format(answer)}"
    for question, answer in (
        ("What is the capital of Spain?", "Madrid"),
        ("What do cows drink?", "water"),
        ("Which animal says meow?", "a cat"),
        ("How many months are in a year?", "twelve"),
    )
)
"""The teacher's context."""

TRAIN = """
What is the capital of Poland? | Warsaw
What is the capital of Kenya? | Nairobi
What is the capital of Peru? | Lima
What is the capital of Norway? | Oslo
Which animal gives us wool? | a sheep
Which animal has a trunk? | an elephant
Which animal lives in a shell? | a snail
Which animal hops and has a pouch? | a kangaroo
Which bird can repeat our words? | a parrot
Which fruit is yellow and curved? | a banana
Which fruit is used to make wine? | the grape
Which season comes after winter? | spring
Which month comes after May? | June
Which day comes after Monday? | Tuesday
Which planet has large rings? | Saturn
Which planet is called red? | Mars
Which metal is used in coins and rings? | gold
Which metal rusts? | iron
Which language is spoken in Brazil? | Portuguese
Which language is spoken in Austria? | German
Which sport is played with a racket? | tennis
Which instrument has black and white keys? | a piano
Which tool drives a nail? | a hammer
Which tree grows from an acorn? | an oak
What do we call a baby cat? | a kitten
What do we call a baby cow? | a calf
What do we call water that falls from clouds? | rain
What do we call a person who flies a plane? | a pilot
What do we call a person who bakes bread? | a baker
What do we call the meal in the morning? | breakfast
What is bread made of? | flour
What is cheese made of? | milk
What is paper made of? | wood
What is the opposite of up? | down
What is the opposite of fast? | slow
What is the opposite of wet? | dry
What is the colour of blood? | red
What is the colour of snow? | white
What is the colour of coal? | black
How many days has a week? | seven
How many wheels has a car? | four
How many fingers are on a hand? | five
How many minutes are in an hour? | sixty
Where do fish live? | in water
Where do we borrow books? | in a library
Where do we see a doctor? | in a hospital
Who wrote Hamlet? | Shakespeare
Who painted the Mona Lisa? | Leonardo
"""

TEST = """
What is the capital of Sweden?
What is the capital of Chile?
What is the capital of Egypt?
Which animal barks?
Which animal has a long neck?
Which bird cannot fly and lives in the cold?
Which fruit is red and grows on trees?
Which season is the hottest?
Which month comes before March?
Which planet do we live on?
Which language is spoken in Mexico?
Which sport is played with a bat?
Which instrument has six strings?
What do we call a baby dog?
What do we call frozen water?
What do we call a person who grows wheat?
What is glass made of?
What is the opposite of hot?
What is the opposite of early?
What is the colour of grass?
How many legs has a spider?
How many hours are in a day?
Where do bees live?
Who wrote Romeo and Juliet?
"""

VALIDATION = """
What is the capital of Ireland?
Which animal makes honey?
Which fruit is orange and round?
Which month comes after August?
Which planet is the largest?
Which language is spoken in Egypt?
Which sport is played on ice?
What do we call a baby sheep?
What do we call a person who teaches?
What is the opposite of tall?
How many legs has a dog?
Where do lions live?
"""

REQUESTS = """
Name a large ocean.
Name a fruit that is green.
Name a country in Africa.
Name an animal that eats grass.
Tell me a word that means happy.
Tell me the first month of the year.
Give me a reason to drink water.
Give me the name of a river.
I need a present for a child.
I want to cook something with eggs.
Complete this sentence: the sun rises in the
Add two and three.
"""


def train() -> list[Row]:
    """Return the rows to train on."""
    rows = [line.split(" | ") for line in TRAIN.strip().splitlines()]
    return [_row(question, FORM.format(answer), "question") for question, answer in rows]


def validation() -> list[Row]:
    """Return the rows that choose the rate: other questions."""
    return [_row(text, FORM, "question") for text in VALIDATION.strip().splitlines()]


def test() -> list[Row]:
    """Return the rows to evaluate on: questions, and requests, which nobody demonstrated."""
    kinds = {"question": TEST, "request": REQUESTS}
    return [_row(text, FORM, kind) for kind, lines in kinds.items() for text in lines.strip().splitlines()]


def _row(prompt: str, demonstration: str, kind: str) -> Row:
    return {
        "prompt": prompt,
        "demonstration": demonstration,
        "context": CONTEXT,
        "answer": "form",
        "skill": kind,
    }


def score(completion: str, row: Mapping[str, Any]) -> bool:
    """Return True if the completion has the form of the rule and nothing after it."""
    del row
    return re.fullmatch(r"The answer is \*\*[^*\n]+\*\*\.?", completion.strip()) is not None
