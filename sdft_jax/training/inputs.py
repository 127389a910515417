"""The inputs of a run: tokenizer, training rows and evaluation rows, read and validated before training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdft_jax.config import Config, Method, sharding_from
from sdft_jax.config.settings import DataConfig, EvalConfig
from sdft_jax.data.contamination import refuse_contamination
from sdft_jax.data.encoding import (
    Dropped,
    Encoded,
    PromptFormat,
    RowEncoder,
    encode_rows,
    load_template,
    make_format,
    prompt_encoder,
    text_encoder,
)
from sdft_jax.data.examples import Example
from sdft_jax.data.indexed import spread
from sdft_jax.data.lazy_rows import LazyRows, checked, excluding
from sdft_jax.data.prompt_ends import PromptEnd, prompt_ends, refuse_thoughtless_teacher
from sdft_jax.data.sources import index_examples, index_text_examples, read_rows
from sdft_jax.data.template_arguments import check_arguments
from sdft_jax.evaluation.eval_set import EvalSet, encode_eval, read_eval
from sdft_jax.models import (
    Architecture,
    Model,
    model_directory,
    open_checkpoint,
    read_architecture,
    read_eos_ids,
)
from sdft_jax.models.architecture import check_quantizable
from sdft_jax.models.hf.adapter import open_adapter
from sdft_jax.models.hf.reading import weights_digest
from sdft_jax.models.hf.tokenizer import load_tokenizer, stop_tokens
from sdft_jax.models.lora import make_lora
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.training.processes import together
from sdft_jax.training.run_directory import RunDirectory
from sdft_jax.types import Params, StopTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WEIGHTS = "the weights of the model"
"""The name of the digest of the weights in `fingerprint`."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a run, except the weights."""

    directory: str
    """The directory of the model."""
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    train: Sequence[Encoded]
    """The training rows; `LazyRows` for a source with more rows than `data.check`."""
    dropped: Dropped
    """The training rows over a length limit, among those that were tokenized before the first step."""
    sources: tuple[str, ...] = ()
    """The sources of the training rows if they are joined from several; empty for data.path."""
    new: EvalSet | None = None
    """Rows of eval.path: the new skill."""
    prior: EvalSet | None = None
    """Rows of eval.prior: prior skills."""
    validation: EvalSet | None = None
    """Rows of eval.validation, for stopping and choosing."""
    general: Sequence[Encoded] = ()
    """Prompts of data.general, if the method trains on them."""
    general_dropped: Dropped = dataclasses.field(default_factory=Dropped)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Digests of the texts of the training rows, by the name of `fingerprint`."""
    ends: Mapping[str, PromptEnd] = dataclasses.field(default_factory=dict)
    """The ends of the prompts of the first training row, by role; empty for raw texts."""
    source: str | None = None
    """The directory of the model with the dtypes and the tokenizer files of the exported model; None for
    `directory`."""

    @functools.cached_property
    def stop(self) -> StopTokens:
        """The stop tokens, the padding token and the number of ids that the tokenizer has."""
        return stop_tokens(self.tokenizer, self.eos_ids)

    @property
    def dropped_share(self) -> float:
        """The share of dropped rows in the training rows that were tokenized before the first step."""
        return self.dropped.total / (self.dropped.total + len(checked(self.train)))

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
    both, so that they train on the same rows. Of a source with more than `data.check` rows, that many are
    read, evenly spread; the others are read when they are trained on.

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
    first, general_first = (
        [each[i] for i in spread(len(each), config.data.check)] for each in (rows, general_rows)
    )
    new = _read_eval(config.eval.path, config, context)
    validation = _read_eval(config.eval.validation, config, context)
    prior = _read_eval(config.eval.prior, config, False)
    directory = model_directory(config.model.path)
    architecture = read_architecture(directory)
    open_checkpoint(directory, architecture)
    adapter = adapter_digest(config, architecture, directory)
    tokenizer = load_tokenizer(directory)
    if not RunDirectory(config.output).config.exists():  # a run of an older version may have unread arguments
        check_arguments(tokenizer, config.data)
    eos_ids = read_eos_ids(tokenizer, directory)
    format = make_format(tokenizer, config.data, eos_ids, architecture.vocab_size)
    encoder = _train_encoder(config, format)
    with reporter.bar("tokenizing", len(first)) as show:
        encoded, dropped = encode_rows(first, encoder, lambda done, _: show(done, ""))
    ends = {} if config.method.target == "text" else prompt_ends(encoded[0], format)
    if config.method.scores_student:
        refuse_thoughtless_teacher(ends)
    train = _all_rows(rows, encoder, encoded, len(first))
    general: Sequence[Encoded] = ()
    general_dropped = Dropped()
    if general_rows:
        general_encoder = prompt_encoder(format, config.data, teacher=False)
        general_encoded, general_dropped = encode_rows(general_first, general_encoder)
        general = _all_rows(general_rows, general_encoder, general_encoded, len(general_first))

    def encode_set(examples: list[Example] | None, context: bool) -> EvalSet | None:
        return None if examples is None else encode_eval(examples, config, format, context)

    inputs = Inputs(
        directory,
        tokenizer,
        eos_ids,
        train,
        dropped,
        new=encode_set(new, context),
        prior=encode_set(prior, False),
        validation=encode_set(validation, context),
        general=general,
        general_dropped=general_dropped,
        digests=_digests(config, (first, len(rows)), (general_first, len(general_rows)))
        | template_digest(format)
        | adapter,
        ends=ends,
    )
    for path, rows_of in (("path", inputs.new), ("validation", inputs.validation), ("prior", inputs.prior)):
        inputs = hold_out(inputs, config, config.eval, getattr(config.eval, path), rows_of)
    return inputs


def _all_rows(
    examples: Sequence[Example], encoder: RowEncoder, encoded: Sequence[Encoded], count: int
) -> Sequence[Encoded]:
    """Return all rows of a source, of which `count` are encoded, without those that are dropped."""
    if count == len(examples):
        return tuple(encoded)
    return LazyRows(len(examples), lambda index: encoder(examples[index]), tuple(encoded), encoder.longest)


def adapter_digest(config: Config, architecture: Architecture, base: str) -> dict[str, str]:
    """Return the digest of the adapter to start from by its name in messages; {} without one.

    Raises:
        SdftError: the settings of the adapters do not fit the model, or the files of the adapter.
    """
    check_quantizable(architecture, config.lora.quantize)
    lora = make_lora(config.lora, architecture.sizes, architecture.projections)
    if not (lora and config.lora.adapter):
        return {}
    stored = open_adapter(dataclasses.replace(architecture, lora=lora), config.lora.adapter, base)
    return {"the weights of the adapter": weights_digest(stored)}


def fingerprint(inputs: Inputs) -> dict[str, str]:
    """Return a digest of each input of a run by its name in messages.

    The texts of the rows count, not their tokens: some chat templates add the date. Of the weights, the
    headers and some values of every tensor count.
    """
    weights = open_checkpoint(inputs.directory, read_architecture(inputs.directory))
    return {
        WEIGHTS: weights_digest(weights),
        **tokenizer_digests(inputs.tokenizer, inputs.eos_ids),
        **inputs.digests,
        **{
            f"the evaluation rows ({name})": _digest(
                (x.prompt, x.context, x.answer, *x.tools) for x in rows.examples
            )
            for name, rows in inputs.eval_sets.items()
        },
    }


def tokenizer_digests(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> dict[str, str]:
    """Return the digests of a tokenizer and of its stop tokens by their names in messages."""
    stop = stop_tokens(tokenizer, eos_ids)
    return {
        "the stop tokens": _digest([*stop.eos_ids, stop.pad_id]),
        "the tokenizer or its chat template": _digest(
            [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
        ),
    }


def template_digest(format: PromptFormat) -> dict[str, str]:
    """Return the digest of the teacher's template by its name in messages."""
    return {"the teacher's template": _digest([format.template.template])}


def _digests(
    config: Config, rows: tuple[Sequence[Example], int], general: tuple[Sequence[Example], int]
) -> dict[str, str]:
    """Return digests of the texts that a run trains on.

    Demonstrations count only if the method reads them: a baseline, which may be added later, needs them too.
    Of a large source, the number of rows counts, and the texts of the rows that are read before the first
    step: another row may be repaired.

    Args:
        config: the settings.
        rows: the training rows that are read before the first step, and the number of all.
        general: the same of the general prompts.
    """
    method = config.method
    shown = method.target is not None or (method.context and config.data.context is None)

    def more(first: Sequence[Example], size: int) -> list[int]:
        return [size] if size > len(first) else []

    texts = (
        (x.prompt, *((x.demonstration, *x.others) if shown else ("",)), x.context, *x.tools) for x in rows[0]
    )
    prompts = ((x.prompt, *x.tools) if x.tools else x.prompt for x in general[0])
    return {
        "the training rows": _digest(itertools.chain(more(*rows), texts)),
        "the general prompts": _digest(itertools.chain(more(*general), prompts)),
    }


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def trained_prompts(method: Method, data: DataConfig, inputs: Inputs) -> dict[str, Sequence[Encoded]]:
    """Return source -> rows whose prompts the method trains on; empty if it does not train."""
    if not method.trains:
        return {}
    if not inputs.general:
        return {data.path: inputs.train}
    return {data.path: inputs.train, str(data.general): inputs.general}


def hold_out(
    inputs: Inputs, config: Config, options: EvalConfig, path: str | None, rows: EvalSet | None
) -> Inputs:
    """Return inputs that train on no prompt of an evaluation, unless `eval.overlap` allows it.

    Args:
        inputs: the training rows.
        config: the method, and the sources of the training rows.
        options: the settings of the evaluation.
        path: the source of the evaluation.
        rows: its rows.

    Raises:
        SdftError: rows that are known before the first step have such a prompt. The other rows of a large
            source are dropped when they are read.
    """
    trained = trained_prompts(config.method, config.data, inputs)
    if rows is None or options.overlap == "allow" or not trained:
        return inputs
    refuse_contamination(trained, str(path), rows.encoded)
    train, general = (excluding(part, rows.encoded) for part in (inputs.train, inputs.general))
    return dataclasses.replace(inputs, train=train, general=general)


def _imitates(config: Config) -> bool:
    """Return True if demonstrations become target completions."""
    return config.baseline or config.method.target == "demonstration"


def _read_train(config: Config) -> Sequence[Example]:
    method, data = config.method, config.data
    rows = read_rows(data.path, data.split)
    if method.target == "text":
        return index_text_examples(rows, data, data.path)
    return index_examples(rows, data, data.path, demonstration=_imitates(config), context=method.context)


def _train_encoder(config: Config, format: PromptFormat) -> RowEncoder:
    if config.method.target == "text":
        return text_encoder(format, config.data)
    max_target = config.sampling.max_new_tokens if _imitates(config) else None
    return prompt_encoder(format, config.data, max_target=max_target, teacher=config.method.context)


def _read_general(config: Config) -> Sequence[Example]:
    """Return all prompts of data.general if the method trains on them."""
    path = config.data.general
    if path is None or not config.method.general:
        return []
    data = dataclasses.replace(config.data, limit=None)
    return index_examples(read_rows(path, data.split), data, path, demonstration=False)


def _read_eval(path: str | None, config: Config, context: bool) -> list[Example] | None:
    return None if path is None else read_eval(path, config, context)
