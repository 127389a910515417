"""The origin of a run: public names, checksums that sha256sum confirms, numbers of rows."""

import dataclasses
import hashlib
import json
import os
import subprocess

import fsspec
import pytest

from runs import config_of
from sdft_jax.training import provenance
from sdft_jax.training.inputs import fingerprint, load_inputs
from sdft_jax.training.provenance import (
    describe_source,
    public_name,
    read_provenance,
    write_provenance,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mini", "mini"),
        ("mini:blax:heldout", "mini:blax:heldout"),
        ("tfds:gsm8k:train", "tfds:gsm8k:train"),
        ("tfds:/home/me/builder", "builder"),
        ("owner/name", "owner/name"),
        ("owner/name:test", "owner/name:test"),
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("../rows.jsonl", "rows.jsonl"),
        ("work/secret/rows.jsonl", "rows.jsonl"),
        ("gs://bucket/rows.jsonl", "rows.jsonl"),
        ("s3://bucket/rows", "rows"),
    ],
)
def test_public_names(path, name):
    assert public_name(path) == name


def test_files_and_directories_have_checksums_of_sha256sum(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path)
    expected = subprocess.run(["sha256sum", "data/rows.jsonl"], capture_output=True, check=True).stdout
    record = {"source": "rows.jsonl", "sha256": expected.decode().split()[0]}
    assert describe_source("data/rows.jsonl") == record
    lines = subprocess.run(["sha256sum", "rows.jsonl"], cwd="data", capture_output=True, check=True).stdout
    of_directory = hashlib.sha256(lines).hexdigest()
    assert describe_source("data") == {"source": "data", "sha256": of_directory}
    assert describe_source("data:test") == {"source": "data:test", "sha256": of_directory}
    assert describe_source(f"tfds:{tmp_path}/data:test")["sha256"] == of_directory
    assert describe_source(f"tfds:{tmp_path}/data") == {"source": "data", "sha256": of_directory}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/bucket-of-checksums/rows.jsonl", b'{"prompt": "a"}\n')
    for name in ("rows.jsonl", "rows.jsonl:test"):
        sha256 = describe_source(f"memory://bucket-of-checksums/{name}")["sha256"]
        assert sha256 == record["sha256"]
    monkeypatch.setattr(provenance, "_MOST_BYTES", 4)
    assert describe_source("data") == {"source": "data"}
    assert describe_source("owner/rows:test") == {"source": "owner/rows:test", "hub": "owner/rows"}
    assert describe_source("gsm8k") == {"source": "gsm8k", "hub": "gsm8k"}
    assert describe_source("mini") == {"source": "mini"}


def test_the_record_of_a_run(tiny_directory, tmp_path):
    rows = [{"prompt": "reverse a b", "demonstration": "b a"}, {"prompt": "a " * 99, "demonstration": "a"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tiny_directory, tmp_path, f"data.path={tmp_path}/rows.jsonl", "data.limit=null")
    inputs = load_inputs(config)
    digests = fingerprint(inputs)
    write_provenance(tmp_path, config, inputs, digests)
    record = read_provenance(str(tmp_path))
    training = record["sources"]["training"]
    assert (training["source"], training["rows"], training["dropped"]) == ("rows.jsonl", 1, 1)
    assert training["digest"] == digests["the training rows"]
    assert record["sources"]["new skill"]["rows"] == record["sources"]["old skills"]["rows"] == 8
    assert "the general prompts" not in record["digests"]
    assert os.fspath(tmp_path) not in (tmp_path / "provenance.json").read_text()


def test_dropped_rows_of_a_large_source_are_of_those_that_were_checked(tiny_directory, tmp_path):
    rows = [{"prompt": f"reverse a b {'a ' * (99 * (i % 4 == 0))}", "demonstration": "b a"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = (f"data.path={tmp_path}/rows.jsonl", "data.limit=null", "data.check=5")
    config = config_of(tiny_directory, tmp_path, *overrides)
    inputs = load_inputs(config)
    write_provenance(tmp_path, config, inputs, fingerprint(inputs))
    sources = read_provenance(str(tmp_path))["sources"]
    counts = {name: sources["training"][name] for name in ("rows", "checked", "dropped")}
    assert counts == {"rows": 9, "checked": 5, "dropped": 3}, "rows 0, 4 and 8 of 0, 2, 4, 6 and 8"
    assert inputs.train.dropped.total == 0, "no other row is read for the record"
    assert "checked" not in sources["new skill"]


def test_rows_of_several_sources_name_all_of_them(tiny_directory, tmp_path):
    config = config_of(tiny_directory, tmp_path)
    inputs = dataclasses.replace(load_inputs(config), sources=("/home/me/one.jsonl", "owner/two:train"))
    write_provenance(tmp_path, config, inputs, fingerprint(inputs))
    training = read_provenance(str(tmp_path))["sources"]["training"]
    assert (training["source"], training["rows"]) == ("one.jsonl, owner/two:train", 24)
    assert not {"sha256", "hub"} & training.keys()


def test_a_link_has_its_own_name(tmp_path):
    (tmp_path / "0a1b2c").touch()  # as the cache of the Hub names its files
    (tmp_path / "rows.parquet").symlink_to(tmp_path / "0a1b2c")
    assert public_name(str(tmp_path / "rows.parquet")) == "rows.parquet"


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_a_damaged_record_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "provenance.json").write_text(text)
    assert read_provenance(str(tmp_path)) == {}
