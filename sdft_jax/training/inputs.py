"""Everything that can be wrong with model files and data is found here, before any long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.config.devices import sharding_from
from sdft_jax.config.methods import METHODS
from sdft_jax.config.settings import DataConfig, EvalConfig
from sdft_jax.data import make_examples, make_text_examples, read_rows
from sdft_jax.data.contamination import refuse_overlap
from sdft_jax.data.encoding import Dropped, Encoded, encode_all, encode_texts, load_template
from sdft_jax.data.examples import Example
from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, read_eval
from sdft_jax.models import open_checkpoint, read_config
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.models.hf.tokenizer import eos_ids, load_tokenizer
from sdft_jax.reporting.progress import bar


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Tokenizer, training rows and evaluation rows of a run."""

    directory: str
    tokenizer: Any
    eos: tuple[int, ...]
    pad_id: int
    train: tuple[Encoded, ...]
    dropped: Dropped
    new: EvalSet | None
    prior: EvalSet | None
    validation: EvalSet | None = None
    """Rows of eval.validation, by which stopping and choosing go."""
    general: tuple[Encoded, ...] = ()
    """Prompts of data.general, for a method that trains on them too."""
    general_dropped: Dropped = dataclasses.field(default_factory=Dropped)


def prepare(config: Config, active: bool = True) -> Prepared:
    """Read and tokenise all that a run needs, the cheap and the local first.

    Only what the method reads is asked of a row. Demonstrations become completions too where the method, or
    the baseline beside it, imitates them: then a row whose demonstration is over the limit is dropped for
    both, so that they see the same rows.

    Raises:
        SdftError: the culprit and the remedy.
    """
    sharding_from(config)
    load_template(config.data.template)
    shown = config.eval.teacher or config.train.method == "oracle"
    rows, general = _read_train(config), _read_general(config)
    new = _read_eval(config.eval.path, config, shown)
    validation = _read_eval(config.eval.validation, config, shown)
    prior = _read_eval(config.eval.prior, config, teacher=False)
    directory = model_directory(config.model.path)
    open_checkpoint(directory, read_config(directory))
    tokenizer = load_tokenizer(directory)
    eos = eos_ids(tokenizer, directory)
    with bar("tokenising", len(rows), active=active) as show:
        encoded, dropped = _encode_train(rows, config, tokenizer, eos, lambda done, _: show(done, ""))
    prompts, prompts_dropped = (
        encode_all(general, tokenizer, config.data, eos=eos, teacher=False) if general else ([], Dropped())
    )

    def encode_set(found: list[Example] | None, teacher: bool) -> EvalSet | None:
        return None if found is None else encode_eval(found, config, tokenizer, eos, teacher)

    prepared = Prepared(
        directory,
        tokenizer,
        eos,
        tokenizer.pad_token_id,
        tuple(encoded),
        dropped,
        new=encode_set(new, shown),
        prior=encode_set(prior, teacher=False),
        validation=encode_set(validation, shown),
        general=tuple(prompts),
        general_dropped=prompts_dropped,
    )
    trained, options = trained_prompts(config.train.method, config.data, prepared), config.eval
    refuse_examined(trained, options, options.path, prepared.new)
    refuse_examined(trained, options, options.validation, prepared.validation)
    refuse_examined(trained, options, options.prior, prepared.prior)
    return prepared


def trained_prompts(method: str, data: DataConfig, prepared: Prepared) -> dict[str, tuple[Encoded, ...]]:
    """Source -> rows whose prompts the method trains on; nothing with the oracle."""
    if method == "oracle":
        return {}
    return {data.path: prepared.train} | ({data.general: prepared.general} if data.general else {})


def refuse_examined(
    trained: Mapping[str, Sequence[Encoded]], options: EvalConfig, path: str | None, rows: EvalSet | None
) -> None:
    """Refuse an evaluation of prompts that are trained on, unless `eval.overlap` allows it."""
    if rows is not None and options.overlap == "error":
        refuse_overlap(trained, str(path), rows.encoded)


def _imitates(config: Config) -> bool:
    """Whether demonstrations become completions."""
    return config.baseline or METHODS[config.train.method].completion == "demonstration"


def _read_train(config: Config) -> list[Example]:
    method, data = METHODS[config.train.method], config.data
    rows = read_rows(data.path, data.split)
    if method.completion == "text":
        return make_text_examples(rows, data, data.path)
    return make_examples(rows, data, data.path, demonstration=_imitates(config), context=method.context)


def _encode_train(
    rows: list[Example],
    config: Config,
    tokenizer: Any,
    eos: Sequence[int],
    progress: Callable[[int, int], None],
) -> tuple[list[Encoded], Dropped]:
    method = METHODS[config.train.method]
    if method.completion == "text":
        return encode_texts(rows, tokenizer, config.data, progress=progress)
    longest = config.sampling.max_new_tokens if _imitates(config) else None
    return encode_all(
        rows,
        tokenizer,
        config.data,
        eos=eos,
        max_completion=longest,
        teacher=method.context,
        progress=progress,
    )


def _read_general(config: Config) -> list[Example]:
    """All prompts of data.general, where the method needs them."""
    path = config.data.general
    if path is None or not METHODS[config.train.method].general:
        return []
    data = dataclasses.replace(config.data, limit=None)
    return make_examples(read_rows(path, data.split), data, path, demonstration=False)


def _read_eval(path: str | None, config: Config, teacher: bool) -> list[Example] | None:
    return None if path is None else read_eval(path, config, teacher)
