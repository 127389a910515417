"""The model as lm-eval sees it: texts in, log-likelihoods and texts out.

Tokenization, truncation and stop strings are those of lm-eval's own `hf` model, so that the results are the
same. This module alone needs lm-eval to be imported.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM, hash_args
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoConfig

from sdft_jax.config import Config
from sdft_jax.config.settings import SamplingConfig
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.generation import Generation, complete
from sdft_jax.evaluation.loglikelihood import Limits, Request, Score, score_continuations
from sdft_jax.evaluation.request_log import RequestLog
from sdft_jax.files import RenderError, read_json, render
from sdft_jax.models.hf.tokenizer import listed_eos_ids
from sdft_jax.models.speaker import Speaker
from sdft_jax.reporting.reporter import SILENT, Reporter
from sdft_jax.sampling import make_key, sample_keys

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p")
"""Settings of a task's generation that are those of `SamplingConfig`."""
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0}
"""Other settings of transformers, with the value that changes nothing."""
_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
DEFAULT_NEW_TOKENS = 256
"""The maximum length of a completion if the task has none, as for `hf`."""


class Harness(TemplateLM):
    """A model in memory as a model of lm-eval, for `lm_eval.simple_evaluate(model=...)`.

    Every process of a run calls it with the same requests, and gets all answers.
    """

    def __init__(
        self,
        speaker: Speaker,
        config: Config,
        reporter: Reporter = SILENT,
        log: RequestLog | None = None,
    ):
        """Wrap a model.

        Args:
            speaker: the model with its tokenizer.
            config: `eval.batch_size` and `divergence.chunk` are the sizes of one call of the model,
                `train.seed` the seed of samples, `data.template_kwargs` arguments of the chat template.
            reporter: shows progress bars.
            log: the answers that are known, which receives the others.
        """
        super().__init__()
        self.speaker, self.config, self.reporter = speaker, config, reporter
        self.log = log or RequestLog()
        self.tokenizer: Any = speaker.tokenizer
        self.cuts: Counter[str] = Counter()
        """The number of requests of each type whose context was cut on the left to `max_length`."""
        described = AutoConfig.for_model(**json.loads(speaker.model.architecture.source_json))
        self.max_length = resolve_max_length(described, self.tokenizer)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The context of a text that has none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, which is that of the model."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return the entries of `config` in the results that describe the model."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.speaker.params))
        return {
            "model": "sdft_jax",
            "model_num_parameters": count,
            "model_dtype": self.speaker.model.compute_dtype,
            "mesh": dict(self.speaker.model.sharding.mesh.shape),
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text; None adds special tokens unless the text begins with one."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode(self.prefix_token_id, clean_up_tokenization_spaces=False)
            add_special_tokens = not has_bos_prefix(string, prefix)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation, without its system message if the template refuses that."""
        options = {**self.config.data.template_kwargs, "continue_final_message": not add_generation_prompt}
        conversations = (chat_history, [turn for turn in chat_history if turn["role"] != "system"])
        for conversation in conversations:
            try:
                return render(self.tokenizer, conversation, options, add_generation_prompt)
            except RenderError as error:
                problem = error
        raise SdftError(
            f"the chat template refuses a conversation of a task ({problem}): leave the task out."
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, greedy decoding gives it) of each continuation."""
        names = [hash_args("loglikelihood", strings) for strings, _, _ in requests]
        pairs = [self._pair(*request) for request in requests]
        self.cuts["loglikelihood"] += sum(pair.cut(self.max_length) > 0 for pair in pairs)
        missing = self._missing(names)
        for place, score in self._score([pairs[index] for index in missing], "log-likelihoods"):
            index = missing[place]
            self.log.add(names[index], list(score))
            self.cache_hook.add_partial("loglikelihood", requests[index][0], tuple(score))
        return [tuple(self.log.answers[name]) for name in names]

    def _pair(self, strings: tuple[str, str], context: list[int], continuation: list[int]) -> Request:
        if not 0 < len(continuation) <= self.max_length:
            raise SdftError(
                f"the continuation {strings[1]!r} of the context ...{strings[0][-40:]!r} has "
                f"{len(continuation)} tokens, and this model scores 1 to {self.max_length}: change or remove "
                "this row of the task, or leave the task out."
            )
        return Request(tuple(context), tuple(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's maximum length."""
        names = [hash_args("loglikelihood_rolling", request.args) for request in requests]
        missing = self._missing(names)
        windows = [self._windows(requests[index].args[0]) for index in missing]
        owners = [place for place, parts in enumerate(windows) for _ in parts]
        scores: list[list[float]] = [[] for _ in missing]

        def record(place: int) -> None:
            self.log.add(names[missing[place]], math.fsum(scores[place]))
            request = requests[missing[place]]
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, math.fsum(scores[place]))

        for place, parts in enumerate(windows):
            if not parts:  # an empty text
                record(place)
        for number, score in self._score(list(itertools.chain(*windows)), "texts"):
            place = owners[number]
            scores[place].append(score.logprob)
            if len(scores[place]) == len(windows[place]):
                record(place)
        return [self.log.answers[name] for name in names]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the completion of each context, up to its first stop string."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        names: dict[int, str] = {}
        for indices in groups.values():
            members = [requests[index].args for index in indices]
            names |= zip(indices, self._complete(members), strict=True)
        return [self.log.answers[names[index]] for index in range(len(requests))]

    def _complete(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Complete contexts with the same settings, and return the names of the answers in the log."""
        generation = self._generation(requests[0][1])
        room = self.require_room(generation.sampling.max_new_tokens, "a task")
        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context, _ in requests]
        self.cuts["generate_until"] += sum(len(prompt) > room for prompt in prompts)
        names = [hash_args("generate_until", request) for request in requests]
        if generation.sampling.temperature:
            names = _numbered(names)  # repeated requests are different samples
        missing = self._missing(names)
        numbers = np.asarray([zlib.crc32(names[index].encode()) for index in missing], np.uint32)
        completed = complete(
            self.speaker,
            [tuple(prompts[index][-room:]) for index in missing],
            sample_keys(make_key(self.config.train.seed), numbers),
            generation,
            self.config.eval.batch_size,
            self.reporter.track,
        )
        for place, tokens in completed:
            text = postprocess_generated_text(self.speaker.decode(tokens), list(generation.until), None)
            self.log.add(names[missing[place]], text)
            self.cache_hook.add_partial("generate_until", requests[missing[place]], text)
        return names

    def unlisted_end_of_turn(self) -> str | None:
        """Return the token that ends a turn of the chat template, if it is not an EOS of the checkpoint."""
        listed = listed_eos_ids(self.tokenizer, self.speaker.model.source)
        unlisted = [token for token in self.speaker.eos_ids if token not in listed]
        return str(self.tokenizer.convert_ids_to_tokens(unlisted[0])) if unlisted else None

    def ignored_settings(self) -> dict[str, Any]:
        """Return the settings of generation_config.json that change greedy decoding with `hf` alone."""
        file = Path(self.speaker.model.source) / "generation_config.json"
        settings = read_json(file, "copy it again from the model") if file.exists() else {}
        return {
            key: settings[key] for key, neutral in _PENALTIES.items() if settings.get(key, neutral) != neutral
        }

    def require_room(self, new_tokens: int, task: str) -> int:
        """Return the maximum length of a context before a completion.

        Raises:
            SdftError: there is no room for a context; the message names `task`.
        """
        if new_tokens >= self.max_length:
            raise SdftError(
                f"{task} generates up to {new_tokens} tokens, and the maximum length of the model with the "
                f"context is {self.max_length}: leave the task out."
            )
        return self.max_length - new_tokens

    def _generation(self, settings: Mapping[str, Any]) -> Generation:
        """Return a task's generation, which ends at the EOS that the checkpoint lists and at stop strings."""
        sampling, until = read_generation(settings, "a task")
        special = {str(token): number for number, token in self.tokenizer.added_tokens_decoder.items()}
        eos_ids = listed_eos_ids(self.tokenizer, self.speaker.model.source)
        eos_ids += tuple(special[text] for text in until if text in special)
        return Generation(sampling, until, tuple(dict.fromkeys(eos_ids)))

    def _windows(self, text: str) -> list[Request]:
        """Return the windows of a text; each token is predicted once."""
        windows = get_rolling_token_windows(
            self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [Request(tuple(a), tuple(b)) for a, b in map(make_disjoint_window, windows)]

    def _score(self, requests: Sequence[Request], description: str) -> Iterator[tuple[int, Score]]:
        limits = Limits(self.max_length, self.config.eval.batch_size, self.config.divergence.chunk)
        track = functools.partial(self.reporter.track, description=description)
        return score_continuations(self.speaker, requests, limits, track)

    def _missing(self, names: Sequence[str]) -> list[int]:
        """Return the index of the first request with each name that has no answer."""
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        return sorted(index for name, index in first.items() if name not in self.log.answers)


def read_generation(settings: Mapping[str, Any], task: str) -> tuple[SamplingConfig, tuple[str, ...]]:
    """Return the sampling and the stop strings of a task's `generation_kwargs`.

    Raises:
        SdftError: there is a setting that the sampler does not have; the message names `task`.
    """
    rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
    until = handle_stop_sequences(rest.pop("until"), None)
    given = {key: value for key in SAMPLING_KEYS if (value := rest.pop(key, None)) is not None}
    given = {"temperature": 0.0, **given} if rest.pop("do_sample") else {"temperature": 0.0}
    sampling = SamplingConfig(max_new_tokens=rest.pop("max_gen_toks"), **given)
    for key, value in rest.items():
        if _NEUTRAL.get(key) != value:
            raise SdftError(
                f"{task}: generation_kwargs has {key}={value!r}, which the sampler does not support: remove "
                f"it from a copy of the task (--include), or leave the task out."
            )
    return sampling, tuple(text for text in until if text)


def _numbered(names: Sequence[str]) -> list[str]:
    """Return names that differ: the second `x` becomes `x-2`."""
    counts: Counter[str] = Counter()
    numbered = []
    for name in names:
        counts[name] += 1
        numbered.append(f"{name}-{counts[name]}")
    return numbered
