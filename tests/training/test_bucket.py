"""Copies between a local directory and a bucket, on a server with the protocol of Cloud Storage."""

import subprocess
import sys

import pytest

from sdft_jax.training.bucket import is_remote


@pytest.mark.parametrize(
    ("output", "remote"),
    [("gs://bucket/runs/a", True), ("s3://bucket/a", True), ("runs/a", False), ("/runs/gs:/a", False)],
)
def test_a_bucket_is_recognized_by_its_scheme(output, remote):
    assert is_remote(output) is remote


COPIES = """
import os, sys
from pathlib import Path
from etils import epath
from sdft_jax.training.bucket import download, upload

here, there, remote = Path(sys.argv[1]), Path(sys.argv[2]), "gs://bucket/copies/a"
bucket = epath.Path(remote)

def write(name, text, seconds):
    file = here / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (seconds, seconds))

write("metrics.jsonl", "1", 100)
write("rollouts/000001.txt", "a", 100)
write("rollouts/deep/er.txt", "b", 90)
write("checkpoints/1/array", "x", 100)
write("nested/checkpoints", "copied", 100)
write("half.tmp", "x", 100)
upload(here, remote, exclude="checkpoints")
assert (bucket / "metrics.jsonl").read_text() == "1"
assert (bucket / "rollouts/000001.txt").read_text() == "a"
assert (bucket / "rollouts/deep/er.txt").read_text() == "b"
assert (bucket / "nested/checkpoints").read_text() == "copied"
assert not (bucket / "checkpoints").exists()
assert not (bucket / "half.tmp").exists()
assert not (bucket / ".pushed").exists()

# Only new and changed files are copied again.
(bucket / "rollouts/000001.txt").write_text("a of the bucket")
write("metrics.jsonl", "1 2", 101)
write("rollouts/000002.txt", "c", 101)
upload(here, remote, exclude="checkpoints")
assert (bucket / "metrics.jsonl").read_text() == "1 2"
assert (bucket / "rollouts/000002.txt").read_text() == "c"
assert (bucket / "rollouts/000001.txt").read_text() == "a of the bucket"

# A download leaves the files alone that exist.
(bucket / "checkpoints/1").mkdir(parents=True)
(bucket / "checkpoints/1/array").write_text("x")
there.mkdir()
(there / "metrics.jsonl").write_text("local")
download(remote, there, exclude="checkpoints")
files = {str(path.relative_to(there)): path.read_text() for path in there.rglob("*") if path.is_file()}
assert files == {
    "metrics.jsonl": "local",
    "nested/checkpoints": "copied",
    "rollouts/000001.txt": "a of the bucket",
    "rollouts/000002.txt": "c",
    "rollouts/deep/er.txt": "b",
}, files

# A bucket without the directory is empty.
download("gs://bucket/copies/none", there / "none", exclude="checkpoints")
assert list((there / "none").iterdir()) == []
"""


def test_new_and_changed_files_are_copied(bucket_environment, tmp_path):
    command = [sys.executable, "-c", COPIES, str(tmp_path / "here"), str(tmp_path / "there")]
    done = subprocess.run(command, env=bucket_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
