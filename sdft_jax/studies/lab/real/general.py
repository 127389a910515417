"""Prior skills: general questions with their accepted answers, and plain text for the perplexity.

None of the questions is a prompt of a task. An answer is right if it contains an accepted answer as words,
in any form: a rule about the form of answers does not change the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

QUESTIONS = """
Is ice cold? | cold, yes
What colour is the sky on a clear day? | blue
What is the capital of France? | Paris
What is the capital of Japan? | Tokyo
What is the capital of Germany? | Berlin
What is the capital of Italy? | Rome
What is the capital of China? | Beijing
What is the capital of Russia? | Moscow
What is the capital of England? | London
In which country is the Eiffel Tower? | France
In which country are the pyramids of Giza? | Egypt
On which continent is India? | Asia
On which continent is Nigeria? | Africa
What is the largest planet of the solar system? | Jupiter
Which star is closest to the Earth? | sun
What gas do plants take from the air? | carbon dioxide, CO2
What gas do people need to breathe? | oxygen
What is H2O? | water
At what temperature does water boil in Celsius? | 100
Which organ pumps blood through the body? | heart
Which organ do we use to think? | brain
Which organ do we use to see? | eye, eyes
What do bees make? | honey
What do caterpillars turn into? | butterfly, butterflies, moth
What do cows eat? | grass
What is two plus two? | 4, four
What is ten minus three? | 7, seven
How many sides does a triangle have? | 3, three
How many days are in a leap year? | 366
How many seconds are in a minute? | 60, sixty
What is a doctor's job? | treat, care, health, diagnose, patients
Why do we wear coats in winter? | warm, cold
What do you use an umbrella for? | rain, sun, dry
What does a thermometer measure? | temperature
What does a clock show? | time
What is the past tense of go? | went
What is the plural of mouse? | mice
What is a synonym of big? | large, huge, great
Who was the first president of the United States? | Washington
Who discovered gravity? | Newton
In which ocean is Hawaii? | Pacific
What language do people speak in Spain? | Spanish
"""

TEXTS = (
    "The baker opens her shop at six in the morning. First she lights the oven, then she weighs the "
    "flour and mixes it with water, salt and yeast. While the dough rests, she sweeps the floor and "
    "sets the tables.",
    "Rain fell all night, and by morning the river had risen to the edge of the road. The farmers moved"
    " their animals to the higher fields and waited for the water to go down.",
    "To plant a tree, dig a hole that is twice as wide as the roots. Put the tree in the hole, fill it "
    "with soil, and press the soil with your feet. Water the tree well during the first summer.",
    "A library lends books to everyone who has a card. Some people come to read the newspaper, others "
    "to study in a quiet place, and children come on Saturdays to hear a story.",
    "The train to the coast leaves at noon and takes about three hours. It stops in four towns on the "
    "way. From the window you can see hills, fields of wheat and, at the end, the sea.",
    "When light passes from air into water, it changes its direction. This is why a straight stick "
    "looks bent when one half of it is under water. The effect is called refraction.",
    "My grandfather repaired clocks. He worked at a small table near the window, with a lamp and a "
    "magnifying glass, and he could tell by the sound of a clock what was wrong with it.",
    "Trade between the two cities grew quickly after the bridge was built. Merchants who had needed two"
    " days for the journey could now make it in one, and prices in the markets fell.",
)
"""Plain text, written for this study; the perplexity is that of all texts together."""


def rows() -> list[Row]:
    """Return the rows of the prior suite."""
    pairs = [line.split(" | ") for line in QUESTIONS.strip().splitlines()]
    return [{"prompt": question, "answer": answers} for question, answers in pairs]


def score(completion: str, row: Mapping[str, Any]) -> bool:
    """Return True if the completion contains one of the accepted answers as words, in any case."""
    words = "|".join(re.escape(answer) for answer in row["answer"].split(", "))
    return re.search(rf"(?<!\w)(?:{words})(?!\w)", completion, re.IGNORECASE) is not None
