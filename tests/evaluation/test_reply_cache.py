"""Stored replies: kept at any end of the process, shared by processes, robust against damage."""

import json
import os
import subprocess
import sys

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.evaluation.reply_cache import ReplyCache, digest_of


def test_replies_are_there_when_they_are_stored(tmp_path):
    path = tmp_path / "new" / "replies.jsonl"
    cache = ReplyCache(str(path))
    assert cache.get("a") is None
    cache.add("a", "yes\n\u2028\ud800", prompt="p-v1")
    cache.add("b", "no")
    cache.add("b", "no, again")
    other = ReplyCache(str(path))
    for one in (cache, other):
        assert one.get("a") == "yes\n\u2028?", "half of a surrogate pair is not a character"
        assert (one.get("b"), one.damaged) == ("no, again", 0)
    assert json.loads(path.read_text().splitlines()[0])["prompt"] == "p-v1"


def test_damaged_lines_are_ignored_and_counted(tmp_path):
    path = tmp_path / "replies.jsonl"
    good = '{"key": "a", "reply": "yes"}\n'
    path.write_text(f'{good}[1]\n{{"key": "b", "reply": 1}}\nnoise\n{{"key": "c", "rep')
    cache = ReplyCache(str(path))
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.damaged) == ("yes", None, None, 4)
    cache.add("c", "no")
    again = ReplyCache(str(path))
    assert (again.get("a"), again.get("c"), again.damaged) == ("yes", "no", 4), "the cut line ends before it"


PROGRAM = """
import sys
from sdft_jax.evaluation.reply_cache import ReplyCache
cache = ReplyCache(sys.argv[1])
for i in range(300):
    cache.add(f"{sys.argv[2]}-{i}", "x" * (i * 37 % 5000))
"""


def test_two_processes_write_at_the_same_time(tmp_path):
    path = str(tmp_path / "replies.jsonl")
    writers = [subprocess.Popen([sys.executable, "-c", PROGRAM, path, name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    cache = ReplyCache(path)
    assert cache.damaged == 0
    sizes = [len(cache.get(f"{name}-{i}")) for name in ("a", "b") for i in range(300)]
    assert sizes == [i * 37 % 5000 for _ in ("a", "b") for i in range(300)]


def test_file_that_cannot_be_used(tmp_path):
    with pytest.raises(SdftError, match=r"cannot be written \(Is a directory\): set judge\.cache to a file"):
        ReplyCache(str(tmp_path))
    ReplyCache("/dev/null").add("a", "yes")
    with pytest.raises(SdftError, match=r"/dev/full cannot be written \(No space left on device\)"):
        ReplyCache("/dev/full").add("a", "yes")


def test_default_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ReplyCache(None).add("a", "yes")
    assert os.listdir(tmp_path / "sdft_jax") == ["judge.jsonl"]


def test_digest_depends_on_every_part_of_a_request():
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0.0}
    others = [body | {"model": "n"}, body | {"messages": []}, body | {"temperature": 1.0}]
    assert len({digest_of(one) for one in (body, dict(reversed(body.items())), *others)}) == 4
