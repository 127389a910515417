"""Damaged files, as strategies of hypothesis, and the property that each reader of files has.

`pytest --hypothesis-profile=campaign --hypothesis-seed=N tests/test_hostile_files.py` tries many more.
"""

import contextlib
import copy
import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from sdft_jax.errors import LONGEST, SdftError

MEMORY = 2 << 30
"""Maximum additional address space of a reader, in bytes."""
PATIENCE = 120
"""Seconds after which a reader counts as hanging; a slow machine needs a hundredth of it."""

FRAGMENTS = (
    *("null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.5", "NaN", "Infinity", "-Infinity", "1e999"),
    *("1e300", "-1e300", "1e-300", "2147483647", "2147483648", "9223372036854775808", "1" + "0" * 400),
    *(
        "1" * 5000,
        '""',
        '"x"',
        '"\\u0000"',
        '"\\ud800"',
        '"../x"',
        '"/dev/zero"',
        '"a\\nb"',
        '"nan"',
        '"[0m"',
    ),
    *("[]", "{}", "[[]]", "[{}]", "[null]", '["x"]', "[-1]", "[1e999]", '{"x": 1}', '{"x": {}}', "[1, [2]]"),
    *(
        "[" * 50 + "]" * 50,
        "[" * 900 + "]" * 900,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
    ),
    *('"' + "x" * 100_000 + '"', "[" + "0," * 50_000 + "0]"),
)
"""JSON texts that no one expects as a value."""


def paths(tree: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a tree, that of the whole first."""
    yield ()
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from ((key, *rest) for rest in paths(value))


@st.composite
def damaged_json(draw: Callable, valid: Any) -> bytes:
    """JSON texts in which one to three values are replaced, removed, renamed or there twice."""
    tree = [copy.deepcopy(valid)]
    fragments = []
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in paths(tree) if path]))
        parent = tree
        for key in above:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "twice", "remove", "rename"]))
        mark = f"\1{len(fragments)}\1"
        fragments.append(draw(st.sampled_from(FRAGMENTS)))
        if action == "replace" or not isinstance(parent, dict):
            parent[last] = mark
        elif action == "twice":
            parent[last + "\2"] = mark
        elif action == "remove":
            del parent[last]
        else:
            parent[draw(st.text(max_size=3))] = parent.pop(last)
    text = json.dumps(tree[0]).replace("\\u0002", "")
    return re.sub(r'"\\u0001(\d)\\u0001"', lambda match: fragments[int(match[1])], text).encode()


@st.composite
def damaged_bytes(draw: Callable, valid: bytes) -> bytes:
    """Contents that are cut off, or in which some bytes are changed or inserted."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def damaged(valid: Any) -> st.SearchStrategy[bytes]:
    """Damaged forms of a file: of bytes, or of a value whose JSON text it is."""
    if isinstance(valid, bytes):
        return damaged_bytes(valid)
    return damaged_json(valid) | damaged_bytes(json.dumps(valid).encode())


def damaged_lines(rows: list[Any]) -> st.SearchStrategy[bytes]:
    """Damaged forms of a file with a JSON text in each line."""
    lines = [json.dumps(row).encode() for row in rows]
    bad = st.lists(st.sampled_from(rows).flatmap(damaged_json), max_size=3)
    return bad.map(lambda more: b"\n".join([*lines, *more, b""])) | damaged_bytes(b"\n".join(lines))


def damaged_header(valid: bytes) -> st.SearchStrategy[bytes]:
    """Damaged forms of a safetensors file: of its header, or of any bytes."""
    start = 8 + int.from_bytes(valid[:8], "little")
    headers = damaged_json(json.loads(valid[8:start]))
    files = headers.map(lambda text: len(text).to_bytes(8, "little") + text + valid[start:])
    return files | damaged_bytes(valid)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a directory": Path.mkdir,
    "a pipe": _pipe,
    "a loop of links": _loop,
    "an empty file": Path.touch,
    "a file of four terabytes": _sparse,
}
"""Ways to fill the place of a file."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit time and additional memory; the test fails beyond them."""

    def late(number: int, frame: Any) -> None:
        pytest.fail(f"it still runs after {PATIENCE} seconds")  # no handler catches this

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def survives(read: Callable[[], object]) -> None:
    """Check that a reader returns, or raises SdftError with one sentence, within bounds."""
    with bounded():
        try:
            read()
        except SdftError as error:
            message = str(error)
            assert message.strip()
            assert message.isprintable()
            assert len(message) <= LONGEST
