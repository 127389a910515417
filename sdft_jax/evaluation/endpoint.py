"""Requests to an OpenAI-compatible endpoint: concurrent, repeated if they fail, with their replies stored."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from sdft_jax.config.settings import JudgeConfig
from sdft_jax.data.thoughts import without_thoughts
from sdft_jax.errors import SdftError, reason
from sdft_jax.evaluation.reply_cache import ReplyCache, digest_of

Value = TypeVar("Value")

ATTEMPTS = 3
"""Number of times that a request is made whose replies cannot be used; after the first, with the problem."""
_QUOTED = 80
"""Number of characters of a reply that a message quotes."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A request without a usable reply."""

    reason: str
    is_outage: bool = False
    """True if the endpoint did not reply, so that a later request may succeed."""


@dataclasses.dataclass(frozen=True)
class Form(Generic[Value]):
    """The form that replies must have."""

    name: str
    """Name of the prompt with its version, for the lines of the cache."""
    parse: Callable[[str], Value]
    """A function that returns the value of a reply without thoughts. It raises ValueError, with the problem
    in one clause, for a reply in another form."""


def ask_all(
    prompts: Sequence[str],
    form: Form[Value],
    config: JudgeConfig,
    track: Callable[[Iterable], Iterator] = iter,
) -> list[Value | Failure]:
    """Return the value of the reply to each prompt, or the reason why there is none.

    Equal requests are made once, and those with a stored reply not at all. If as many requests in succession
    fail as are made at one time, the endpoint counts as down, and the rest are not made.

    Args:
        prompts: the texts of single user turns.
        form: the form of the replies.
        config: the endpoint.
        track: shows progress over the requests.

    Raises:
        SdftError: the endpoint is not set, does not accept the key or the model, or the package openai is not
            installed, or the cache cannot be used.
    """
    cache = ReplyCache(config.cache)
    bodies = {prompt: _body(prompt, config) for prompt in prompts}
    values: dict[str, Value | Failure] = {}
    for prompt, body in bodies.items():
        stored = _stored(cache, digest_of(body), form)
        if not isinstance(stored, Failure):
            values[prompt] = stored
    missing = [prompt for prompt in bodies if prompt not in values]
    if missing:
        connection = _Connection(config, cache, form)
        pool = ThreadPoolExecutor(config.concurrency)
        try:
            futures = [pool.submit(connection.ask, bodies[prompt]) for prompt in missing]
            for prompt, future in zip(missing, track(futures), strict=True):
                values[prompt] = future.result()
        finally:
            connection.stop("")
            pool.shutdown(cancel_futures=True)
            connection.close()
    return [values[prompt] for prompt in prompts]


def check_endpoint(config: JudgeConfig) -> None:
    """Raise SdftError, before any request, as `ask_all` does; print a note on damaged lines of the cache."""
    _key(config)
    _package(config)
    cache = ReplyCache(config.cache)
    if cache.damaged:
        print(
            f"sdft: {cache.path}: {cache.damaged} damaged lines are ignored; their requests are made again.",
            file=sys.stderr,
            flush=True,
        )


def _package(config: JudgeConfig) -> Any:
    """Return the module openai. Raises SdftError if `judge.url` is not set, or it is not installed."""
    if config.url is None:
        raise SdftError("judge.url is not set: set it to the base URL of an OpenAI-compatible endpoint.")
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise SdftError(
            "judge.url needs the package openai, which is not installed: run pip install 'sdft_jax[judge]', "
            "or set judge.url=null."
        ) from None


def _body(prompt: str, config: JudgeConfig) -> dict[str, Any]:
    """Return the body of a request, which is the key of its reply in the cache."""
    sampling = {} if config.temperature is None else {"temperature": config.temperature}
    return {"model": config.model, "messages": [{"role": "user", "content": prompt}], **sampling}


def _stored(cache: ReplyCache, key: str, form: Form[Value]) -> Value | Failure:
    """Return the value of a stored reply; a Failure if there is none in this form."""
    reply = cache.get(key)
    if reply is None:
        return Failure("it is not stored")
    try:
        return form.parse(without_thoughts(reply))
    except ValueError as error:
        return Failure(reason(error))


class _Connection(Generic[Value]):
    """The connection of several threads to one endpoint.

    Args:
        config: the endpoint.
        cache: stores usable replies.
        form: the form of the replies.
    """

    def __init__(self, config: JudgeConfig, cache: ReplyCache, form: Form[Value]):
        self._openai = openai = _package(config)
        self._config, self._cache, self._form = config, cache, form
        self._key = _key(config)
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=self._key or "none",  # the package requires one
            max_retries=config.retries,
            timeout=config.timeout,
        )
        self._lock = threading.Lock()
        self._failed = 0  # requests in succession
        self._stopped: str | None = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def stop(self, why: str) -> None:
        """Make no further requests: each of them fails with this reason."""
        with self._lock:
            if self._stopped is None:
                self._stopped = why

    def ask(self, body: dict[str, Any]) -> Value | Failure:
        """Return the value of the reply to a request, and store the reply."""
        messages, problem = body["messages"], ""
        for _ in range(ATTEMPTS):
            if self._stopped is not None:
                return Failure(self._stopped, is_outage=True)
            try:
                reply = self._request({**body, "messages": messages})
            except self._openai.OpenAIError as error:
                return self._failure(error)
            except ValueError as error:  # not a chat completion
                problem = self._clean(reason(error))
                continue
            self._failed = 0
            try:
                value = self._form.parse(without_thoughts(reply))
            except ValueError as error:
                problem = f"{reason(error)}; the reply is {self._quoted(reply)}"
                messages = [*body["messages"], *_complaint(reply, reason(error))]
                continue
            self._cache.add(digest_of(body), self._clean(reply), prompt=self._form.name)
            return value
        return Failure(problem)

    def _request(self, body: dict[str, Any]) -> str:
        """Return the text of the reply. Raises ValueError if the endpoint's reply is no chat completion."""
        completion: Any = self._client.chat.completions.create(**body)
        try:
            text = completion.choices[0].message.content
        except (AttributeError, LookupError, TypeError):
            raise ValueError(f"it is not a chat completion, but {str(completion)[:_QUOTED]!r}") from None
        if not isinstance(text, str | None):
            raise ValueError("the message of the chat completion is not a text")
        return text or ""

    def _failure(self, error: Any) -> Failure:
        """Return the failure of a request that got no reply; stop if all others will fail, too.

        Raises:
            SdftError: no request can succeed.
        """
        url, status = self._config.url, getattr(error, "status_code", None)
        if status in (401, 403):
            fatal = (
                f"{url} refuses the key ({status}): put a key that it accepts into the environment variable "
                f"{self._config.key}, which judge.key names."
            )
        elif status == 404:
            fatal = (
                f"{url} has no model {self._config.model!r} or no chat completions "
                f"({self._clean(reason(error))}): correct judge.model or judge.url, which often ends in /v1."
            )
        elif status == 400 and "temperature" in str(error):
            fatal = (
                f"{url} refuses judge.temperature={self._config.temperature} ({self._clean(reason(error))}): "
                "set judge.temperature=null, or a value that it accepts."
            )
        else:
            why = self._explanation(error)
            # those that the client repeats
            is_outage = status is None or status in (408, 409, 429) or status >= 500
            if is_outage:
                self._count(why)
            return Failure(why, is_outage)
        self.stop("the endpoint refuses all requests")
        raise SdftError(fatal)

    def _count(self, why: str) -> None:
        """Count a request without a reply, and stop if there are too many in succession."""
        with self._lock:
            self._failed += 1
            is_down = self._failed >= self._config.concurrency
        if is_down:
            self.stop(f"not asked, since the endpoint is down: {why}")

    def _explanation(self, error: Any) -> str:
        tries = f" after {self._config.retries + 1} attempts" if self._config.retries else ""
        if isinstance(error, self._openai.APITimeoutError):
            return f"no reply within {self._config.timeout:g} s{tries}"
        if isinstance(error, self._openai.APIConnectionError):
            cause = reason(error.__cause__) if error.__cause__ else reason(error)
            return f"no connection to {self._config.url}{tries}: {self._clean(cause)}"
        return self._clean(reason(error))

    def _quoted(self, reply: str) -> str:
        text = self._clean(reply.strip())
        return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...") if text else "empty"

    def _clean(self, text: str) -> str:
        """Return a text of the endpoint without the key, which it may quote."""
        return text.replace(self._key, "***") if len(self._key) >= 8 else text


def _complaint(reply: str, problem: str) -> list[dict[str, str]]:
    """Return the turns that follow a reply in another form; none after an empty one, which some refuse."""
    if not reply.strip():
        return []
    again = f"This reply cannot be used: {problem}. Reply again, in the required form and with nothing else."
    return [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]


def _key(config: JudgeConfig) -> str:
    """Return the key of the endpoint from the environment; empty if there is none.

    Raises:
        SdftError: it has characters that a header of HTTP cannot have; the message does not contain it.
    """
    key = os.environ.get(config.key, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SdftError(
            f"the environment variable {config.key} has characters that no key has, such as line breaks: "
            "set it again."
        )
    return key
