"""Copies of data in a bucket: a file system in memory, and a server with the protocol of Cloud Storage."""

import importlib.util
import subprocess
import sys

import fsspec
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.files import remote
from sdft_jax.files.remote import local_copy


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A file system in memory, and an empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.pipe({"/data/rows.jsonl": b"a", "/data/rows.jsonl.bak": b"b", "/data/deep/er/c": b"c"})
    yield system
    system.rm("/data", recursive=True)


def contents(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_copy_of_a_file_and_of_a_directory(bucket):
    file = local_copy("memory://data/rows.jsonl")
    assert (file.name, file.read_bytes(), len(list(file.parent.iterdir()))) == ("rows.jsonl", b"a", 1)
    expected = {"rows.jsonl": b"a", "rows.jsonl.bak": b"b", "deep/er/c": b"c"}
    for url in ("memory://data", "memory://data/"):
        assert contents(local_copy(url)) == expected
    assert local_copy("memory://data/none") is None


def test_copy_is_used_until_a_file_changes(bucket, monkeypatch):
    first = local_copy("memory://data")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_download", None)
        assert local_copy("memory://data") == first
    bucket.pipe("/data/rows.jsonl", b"changed")
    second = local_copy("memory://data")
    assert (contents(first)["rows.jsonl"], contents(second)["rows.jsonl"]) == (b"a", b"changed")


def test_interrupted_copy_leaves_nothing(bucket, monkeypatch, tmp_path):
    def fail(*_):
        raise ConnectionError("reset by peer\nmore")

    monkeypatch.setattr(type(bucket), "get", fail)
    with pytest.raises(
        SdftError, match=r"^memory://data cannot be copied .*\(reset by peer\): check the address"
    ):
        local_copy("memory://data")
    assert contents(tmp_path / "cache") == {}


def test_another_process_may_be_faster(bucket, monkeypatch):
    download = remote._download

    def download_twice(*arguments):
        monkeypatch.setattr(remote, "_download", download)
        assert local_copy("memory://data")
        download(*arguments)

    monkeypatch.setattr(remote, "_download", download_twice)
    assert contents(local_copy("memory://data"))["rows.jsonl"] == b"a"


def test_name_that_leads_out_of_the_directory(bucket):
    with pytest.raises(SdftError, match=r"the name '/data/\.\./x' leads out of the directory"):
        remote._relative("/data/../x", "/data", "memory://data")


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("nothing://a/b", "Protocol not known"),
        ("s3://a/b", "s3fs is installed"),
        ("hf://a/b", "huggingface_hub is"),
    ],
)
def test_bucket_that_cannot_be_read(url, remedy):
    if url.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, and would try to connect")
    with pytest.raises(SdftError, match=rf"^{url} cannot be copied to the local disk \(.*{remedy}"):
        local_copy(url)


READ = """
from etils import epath
from sdft_jax.data import read_rows
directory = epath.Path("gs://bucket/rows")
directory.mkdir(parents=True, exist_ok=True)
(directory / "train.jsonl").write_text('{"prompt": "p"}\\n{"prompt": "q"}\\n')
assert [row["prompt"] for row in read_rows("gs://bucket/rows/train.jsonl")] == ["p", "q"]
assert [row["prompt"] for row in read_rows("gs://bucket/rows:train")] == ["p", "q"]
"""


def test_rows_in_cloud_storage(bucket_environment, tmp_path):
    environment = bucket_environment | {"XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
