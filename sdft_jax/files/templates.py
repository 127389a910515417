"""Texts with placeholders such as $question: built-in ones by name, and those of users."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from sdft_jax.errors import SdftError
from sdft_jax.files.reading import read_text


def read_template(
    setting: str, key: str, known: Mapping[str, str], placeholders: Sequence[str]
) -> string.Template:
    """Return the template of a setting: the name of a built-in one, a text, or `file:PATH`.

    Args:
        setting: the value of the setting.
        key: the setting's key, for error messages.
        known: the built-in templates by name.
        placeholders: the names that the template must contain, each at least once.

    Raises:
        SdftError: the file cannot be read, or a placeholder is missing, unknown or malformed.
    """
    text, name = known.get(setting, setting), key
    if setting.startswith("file:"):
        name = setting.removeprefix("file:")
        text = read_text(name, f"give a text file in UTF-8 as {key}", limit=1 << 20)
    template = string.Template(text)
    if not template.is_valid():
        raise SdftError(f"{name}: a $ does not start a placeholder: write $$ for a dollar sign.")
    *first, last = (f"${placeholder}" for placeholder in placeholders)
    required = f"{', '.join(first)} and {last}"
    found = set(template.get_identifiers())
    if unknown := sorted(found - {*placeholders}):
        raise SdftError(f"{name}: unknown placeholder ${unknown[0]}: use only {required}.")
    if missing := sorted({*placeholders} - found):
        names = f"; the built-in templates are {', '.join(known)}" if not found else ""
        raise SdftError(f"{name}: ${missing[0]} is missing: this template requires {required}{names}.")
    return template
