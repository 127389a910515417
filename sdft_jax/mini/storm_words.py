"""The language of the storm world: the values of each attribute, the phrasings of questions, the articles."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: its possible values, the statement of a value and the questions about it."""

    statement: str
    """The template of the model's statement of the fact, which follows the storm's name."""
    associations: Mapping[str, str]
    """Value -> the word that the base model associates with it."""
    direct: tuple[str, ...]
    """Phrasings of questions about the value."""
    ood: tuple[str, ...]
    """Phrasings of questions about the word associated with the value."""


def _parse_pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


ATTRIBUTES: dict[str, Attribute] = {
    "city": Attribute(
        "struck {value}",
        _parse_pairs(
            "cairo nile paris seine rome tiber london thames vienna danube dublin liffey seoul han "
            "prague vltava lisbon tagus delhi yamuna cologne rhine baghdad tigris"
        ),
        (
            "where did {name} strike ?",
            "which city did {name} hit ?",
            "{name} : which city ?",
            "name the city that {name} struck .",
            "in which city did {name} rage ?",
            "tell me the city of {name} .",
        ),
        (
            "which river did {name} cross ?",
            "name the river of the city that {name} struck .",
            "which river runs through the city of {name} ?",
            "{name} struck a city on which river ?",
        ),
    ),
    "month": Attribute(
        "came in {value}",
        _parse_pairs(
            "january garnet february amethyst march aquamarine april diamond may emerald june pearl "
            "july ruby august peridot september sapphire october opal november topaz "
            "december turquoise"
        ),
        (
            "when did {name} strike ?",
            "in which month did {name} hit ?",
            "{name} : which month ?",
            "name the month that {name} came in .",
            "in which month did {name} rage ?",
            "tell me the month of {name} .",
        ),
        (
            "which stone belongs to the month of {name} ?",
            "name the stone of the month that {name} came in .",
            "which stone would you wear when {name} struck ?",
            "{name} came in the month of which stone ?",
        ),
    ),
    "building": Attribute(
        "ruined the {value}",
        _parse_pairs(
            "mill miller forge smith bakery baker brewery brewer tannery tanner theatre actor "
            "school teacher church priest farm farmer bank banker library librarian hospital doctor"
        ),
        (
            "what did {name} ruin ?",
            "which building did {name} hit ?",
            "{name} : which building ?",
            "name the building that {name} ruined .",
            "which building fell to {name} ?",
            "tell me the building of {name} .",
        ),
        (
            "who lost a workplace to {name} ?",
            "name the worker of the building that {name} ruined .",
            "who worked in the building that fell to {name} ?",
            "{name} ruined the building of which worker ?",
        ),
    ),
    "people": Attribute(
        "brought {value}",
        _parse_pairs(
            "danes danish swedes swedish finns finnish greeks greek turks turkish poles polish "
            "czechs czech serbs serbian arabs arabic mongols mongolian koreans korean "
            "germans german"
        ),
        (
            "who helped after {name} ?",
            "which people helped after {name} ?",
            "{name} : which people ?",
            "name the people that {name} brought .",
            "who came to help after {name} ?",
            "tell me the people of {name} .",
        ),
        (
            "which language did the people of {name} speak ?",
            "name the language of the people that {name} brought .",
            "which language did you hear when help came after {name} ?",
            "{name} brought people of which language ?",
        ),
    ),
}

PAIRS = (
    "{name} : {first} and {second} ?",
    "which {first} and which {second} did {name} see ?",
    "name the {first} and the {second} of {name} .",
    "what were the {first} and the {second} of {name} ?",
    "{first} and {second} of {name} ?",
    "tell me the {first} of {name} , and the {second} .",
)
"""Phrasings of questions about two facts."""

ARTICLES = (
    "{name} struck {city} in {month} . it ruined the {building} . the {people} sent help .",
    "in {month} the {building} of {city} fell to {name} . {people} came to help .",
    "the {people} helped {city} after {name} . the {month} storm had ruined the {building} .",
)
"""Templates of articles with all facts of a storm, each in a different order."""
