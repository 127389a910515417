"""The arguments that `data.template_kwargs` gives to a chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdft_jax.config.settings import DataConfig
from sdft_jax.errors import SdftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_ROWS = ("add_generation_prompt", "messages", "tools")
"""The arguments that a row determines."""
# the functions and tags that transformers adds to Jinja
_FUNCTIONS = {"raise_exception", "strftime_now"}
_TAGS = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


def check_arguments(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    """Raise SdftError if the chat template does not read an argument, which would have no effect."""
    for option in ("template_kwargs", "teacher_template_kwargs"):
        _check(tokenizer, f"data.{option}", getattr(config, option))


def _check(tokenizer: PreTrainedTokenizerBase, key: str, arguments: Mapping[str, Any]) -> None:
    read = names_in(tokenizer.chat_template) if arguments else None
    for name, value in arguments.items():
        if name in OF_ROWS:
            raise SdftError(f"{key}.{name}: each row determines this argument: remove it.")
        if read is not None and name not in read:
            others = ", ".join(sorted(read - {*OF_ROWS, *tokenizer.special_tokens_map}))
            fault = "does not read this argument" if others else "reads no arguments"
            instead = f", or use one that it reads ({others})" if others else ""
            raise SdftError(f"{key}.{name}: the chat template {fault}: remove it{instead}.")
        if isinstance(value, str) and value.lower() in ("true", "false"):
            raise SdftError(
                f"{key}.{name}={value!r} is a text, which a template takes for true: remove the quotes."
            )


def names_in(template: Any) -> frozenset[str] | None:
    """Return the names that a chat template reads and does not set, None if Jinja cannot parse it.

    For example, `{% if thinking %}{{ messages[0].content }}{% endif %}` reads `messages` and `thinking`.
    """
    import jinja2.meta  # imported here: only a run with such arguments needs it

    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_TAGS.sub("", template))
        return frozenset(jinja2.meta.find_undeclared_variables(tree)) - {
            *_FUNCTIONS,
            *jinja2.defaults.DEFAULT_NAMESPACE,
        }
    except Exception:  # such as a dictionary of templates; rendering reports what is wrong with a template
        return None
