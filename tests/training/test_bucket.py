"""A run's files in a bucket and back, on a server that speaks Cloud Storage's protocol."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from runs import write_config
from sdft_jax import cli
from sdft_jax.training import bucket


def test_local_outputs_are_where_they_are(tmp_path):
    assert bucket.local("runs/a") == Path("runs/a")
    bucket.push(str(tmp_path / "a"))
    bucket.pull(str(tmp_path / "a"), resumed=False)
    assert not (tmp_path / "a").exists()


def test_remote_ones_have_a_directory_of_their_own_here(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert bucket.is_remote("gs://bucket/runs/a")
    assert bucket.local("gs://bucket/runs/a") == Path("/cache/sdft_jax/mirror/gs/bucket/runs/a")


@pytest.fixture(scope="module")
def server():
    """URL of a server with one bucket, in memory."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server").create_server(
        "127.0.0.1", 0, in_memory=True, default_bucket="bucket"
    )
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    yield f"http://{host}:{port}"
    server.stop()


STEPS = {
    "write": """
here.mkdir(parents=True)
(here / "metrics.jsonl").write_text("1")
(here / "rollouts").mkdir()
(here / "rollouts" / "000001.txt").write_text("a")
(here / "checkpoints").mkdir()
(here / "checkpoints" / "not mirrored").write_text("x")
bucket.push(OUTPUT)
""",
    "add": """
before = (epath.Path(OUTPUT) / "rollouts" / "000001.txt").stat().mtime
(here / "metrics.jsonl").write_text("1 2")
bucket.push(OUTPUT)
assert (epath.Path(OUTPUT) / "rollouts" / "000001.txt").stat().mtime == before  # copied once
assert not (epath.Path(OUTPUT) / "checkpoints").exists()
""",
    "go on": """
bucket.pull(OUTPUT, resumed=True)
assert (here / "metrics.jsonl").read_text() == "1 2"
assert (here / "rollouts" / "000001.txt").read_text() == "a"
""",
    "begin anew": """
bucket.pull(OUTPUT.replace("runs/a", "runs/b"), resumed=False)
(here / "stale").write_text("x")
(epath.Path(OUTPUT) / "metrics.jsonl").unlink()
bucket.pull(OUTPUT, resumed=False)
assert sorted(path.name for path in here.iterdir()) == ["rollouts"]
""",
}


def test_what_one_machine_has_written_another_goes_on_with(server, tmp_path):
    def run(step: str, home: str):
        code = f"""
from etils import epath
from sdft_jax.training import bucket
OUTPUT = "gs://bucket/runs/a"
here = bucket.local(OUTPUT)
{STEPS[step]}
"""
        environment = os.environ | {
            "STORAGE_EMULATOR_HOST": server,
            "NO_GCE_CHECK": "true",
            "XDG_CACHE_HOME": str(tmp_path / home),
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("write", "one")
    run("add", "one")
    run("go on", "two")
    run("begin anew", "two")


def test_stages_are_not_handed_on_through_a_bucket(half_directory, tmp_path, capsys):
    config = write_config(tmp_path / "run.yaml", half_directory, tmp_path / "unused")
    assert cli.main(["continual", config, "output=gs://bucket/runs/b"]) == 2
    assert "stages hand models on through a local disk" in capsys.readouterr().err
    assert not epath.Path("gs:").exists()
