"""The inputs of a run: tokenizer, training rows and evaluation rows, read and validated before training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdft_jax.config import Config, Method, sharding_from
from sdft_jax.config.settings import DataConfig, EvalConfig
from sdft_jax.data.contamination import refuse_contamination
from sdft_jax.data.encoding import (
    Dropped,
    Encoded,
    PromptFormat,
    encode_all,
    encode_texts,
    load_template,
    make_format,
)
from sdft_jax.data.examples import Example
from sdft_jax.data.sources import make_examples, make_text_examples, read_rows
from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, read_eval
from sdft_jax.models import (
    Architecture,
    Model,
    model_directory,
    open_checkpoint,
    read_architecture,
    read_eos_ids,
)
from sdft_jax.models.hf.adapter import open_adapter
from sdft_jax.models.hf.reading import weights_digest
from sdft_jax.models.hf.tokenizer import load_tokenizer, stop_tokens
from sdft_jax.models.lora import make_lora
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.training.processes import together
from sdft_jax.types import Params, StopTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a run, except the weights."""

    directory: str
    """The directory of the model."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    train: tuple[Encoded, ...]
    """The training rows."""
    dropped: Dropped
    """The training rows over a length limit."""
    new: EvalSet | None = None
    """Rows of eval.path: the new skill."""
    prior: EvalSet | None = None
    """Rows of eval.prior: prior skills."""
    validation: EvalSet | None = None
    """Rows of eval.validation, for stopping and choosing."""
    general: tuple[Encoded, ...] = ()
    """Prompts of data.general, if the method trains on them."""
    general_dropped: Dropped = dataclasses.field(default_factory=Dropped)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the texts of the training rows, by the name of `fingerprint`."""

    @functools.cached_property
    def stop(self) -> StopTokens:
        """The stop tokens, the padding token and the number of ids that the tokenizer has."""
        return stop_tokens(self.tokenizer, self.eos_ids)

    @property
    def eval_sets(self) -> dict[str, EvalSet]:
        """The evaluation rows by the name that reports use."""
        sets = {"new skill": self.new, "validation": self.validation, "old skills": self.prior}
        return {name: rows for name, rows in sets.items() if rows is not None}

    def speaker(self, model: Model, params: Params) -> Speaker:
        """Return a model with this tokenizer and these stop tokens."""
        return Speaker(model, params, self.tokenizer, self.eos_ids)


def load_inputs(config: Config, reporter: Reporter = SILENT) -> Inputs:
    """Read and tokenize the inputs of a run; fast, local checks come first.

    A row needs only the fields that the method reads. Demonstrations become target completions if the method,
    or the baseline in addition to it, imitates them; a row whose target is over the limit is then dropped for
    both, so that they train on the same rows.

    Raises:
        SdftError: an input is not valid; the message names the file, row or key and the remedy. If one
            process raises it, all do.
    """
    return together(functools.partial(_load_inputs, config, reporter))


def _load_inputs(config: Config, reporter: Reporter) -> Inputs:
    sharding_from(config)
    load_template(config.data.template)
    context = config.eval.teacher or not config.method.trains
    rows, general_rows = _read_train(config), _read_general(config)
    new = _read_eval(config.eval.path, config, context)
    validation = _read_eval(config.eval.validation, config, context)
    prior = _read_eval(config.eval.prior, config, False)
    directory = model_directory(config.model.path)
    architecture = read_architecture(directory)
    open_checkpoint(directory, architecture)
    adapter = _open_adapter(config, architecture)
    tokenizer = load_tokenizer(directory)
    eos_ids = read_eos_ids(tokenizer, directory)
    format = make_format(tokenizer, config.data, eos_ids, architecture.vocab_size)
    with reporter.bar("tokenizing", len(rows)) as show:
        encoded, dropped = _encode_train(rows, config, format, lambda done, _: show(done, ""))
    general, general_dropped = (
        encode_all(general_rows, format, config.data, teacher=False) if general_rows else ([], Dropped())
    )

    def encode_set(examples: list[Example] | None, context: bool) -> EvalSet | None:
        return None if examples is None else encode_eval(examples, config, format, context)

    inputs = Inputs(
        directory,
        tokenizer,
        eos_ids,
        tuple(encoded),
        dropped,
        new=encode_set(new, context),
        prior=encode_set(prior, False),
        validation=encode_set(validation, context),
        general=tuple(general),
        general_dropped=general_dropped,
        digests=_digests(config, rows, general_rows or (), format.template.template) | adapter,
    )
    trained = trained_prompts(config.method, config.data, inputs)
    refuse_trained(trained, config.eval, config.eval.path, inputs.new)
    refuse_trained(trained, config.eval, config.eval.validation, inputs.validation)
    refuse_trained(trained, config.eval, config.eval.prior, inputs.prior)
    return inputs


def _open_adapter(config: Config, architecture: Architecture) -> dict[str, str]:
    """Return the digest of the adapter to start from by its name in messages; {} without one.

    Raises:
        SdftError: the settings of the adapters do not fit the model, or the files of the adapter.
    """
    lora = make_lora(config.lora, architecture.sizes)
    if not (lora and config.lora.adapter):
        return {}
    stored = open_adapter(dataclasses.replace(architecture, lora=lora), config.lora.adapter)
    return {"the weights of the adapter": weights_digest(stored)}


def fingerprint(inputs: Inputs) -> dict[str, str]:
    """Return a digest of each input of a run by its name in messages.

    The texts of the rows count, not their tokens: some chat templates add the date. Of the weights, the
    headers and some values of every tensor count.
    """
    stop, tokenizer = inputs.stop, inputs.tokenizer
    weights = open_checkpoint(inputs.directory, read_architecture(inputs.directory))
    return {
        "the weights of the model": weights_digest(weights),
        "the stop tokens": _digest([*stop.eos_ids, stop.pad_id]),
        "the tokenizer or its chat template": _digest(
            [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
        ),
        **inputs.digests,
        **{
            f"the evaluation rows ({name})": _digest((x.prompt, x.context, x.answer) for x in rows.examples)
            for name, rows in inputs.eval_sets.items()
        },
    }


def _digests(
    config: Config, rows: Sequence[Example], general: Sequence[Example], template: str
) -> dict[str, str]:
    """Return digests of the texts that a run trains on, and of the teacher's template.

    Demonstrations count only if the method reads them: a baseline, which may be added later, needs them too.
    """
    method = config.method
    shown = method.target is not None or (method.context and config.data.context is None)
    return {
        "the training rows": _digest((x.prompt, x.demonstration if shown else "", x.context) for x in rows),
        "the general prompts": _digest(x.prompt for x in general),
        "the teacher's template": _digest([template]),
    }


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def trained_prompts(method: Method, data: DataConfig, inputs: Inputs) -> dict[str, tuple[Encoded, ...]]:
    """Return source -> rows whose prompts the method trains on; empty if it does not train."""
    if not method.trains:
        return {}
    return {data.path: inputs.train} | ({data.general: inputs.general} if data.general else {})


def refuse_trained(
    trained: Mapping[str, Sequence[Encoded]], options: EvalConfig, path: str | None, rows: EvalSet | None
) -> None:
    """Raise SdftError for an evaluation on prompts that are trained on, unless `eval.overlap` allows it."""
    if rows is not None and options.overlap == "error":
        refuse_contamination(trained, str(path), rows.encoded)


def _imitates(config: Config) -> bool:
    """Return True if demonstrations become target completions."""
    return config.baseline or config.method.target == "demonstration"


def _read_train(config: Config) -> list[Example]:
    method, data = config.method, config.data
    rows = read_rows(data.path, data.split)
    if method.target == "text":
        return make_text_examples(rows, data, data.path)
    return make_examples(rows, data, data.path, demonstration=_imitates(config), context=method.context)


def _encode_train(
    rows: list[Example], config: Config, format: PromptFormat, progress: Callable[[int, int], None]
) -> tuple[list[Encoded], Dropped]:
    if config.method.target == "text":
        return encode_texts(rows, format, config.data, progress=progress)
    return encode_all(
        rows,
        format,
        config.data,
        max_target=config.sampling.max_new_tokens if _imitates(config) else None,
        teacher=config.method.context,
        progress=progress,
    )


def _read_general(config: Config) -> list[Example]:
    """Return all prompts of data.general if the method trains on them."""
    path = config.data.general
    if path is None or not config.method.general:
        return []
    data = dataclasses.replace(config.data, limit=None)
    return make_examples(read_rows(path, data.split), data, path, demonstration=False)


def _read_eval(path: str | None, config: Config, context: bool) -> list[Example] | None:
    return None if path is None else read_eval(path, config, context)
