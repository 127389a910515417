"""Every reader of a file that others wrote returns a value, or raises SdftError with one sentence."""

import dataclasses
import fcntl
import functools
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pytest
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st

from hostile import OBSTACLES, damaged, damaged_header, damaged_lines, survives
from sdft_jax.config import load_config, to_dict
from sdft_jax.config.settings import DataConfig
from sdft_jax.continual import arms
from sdft_jax.continual.arms import Plan
from sdft_jax.continual.stages import Arm, Stage, arms_of, stages_of
from sdft_jax.continual.summary import summarize
from sdft_jax.data.encoding import Dropped, load_template
from sdft_jax.data.examples import Example
from sdft_jax.data.sources import load_examples
from sdft_jax.evaluation import answer_log, summary
from sdft_jax.evaluation.comparison import as_json, compare
from sdft_jax.evaluation.comparison_page import comparison_page
from sdft_jax.evaluation.eval_set import EvalSet
from sdft_jax.models import Model, read_architecture
from sdft_jax.models.hf.reading import open_checkpoint
from sdft_jax.models.hf.tokenizer import load_tokenizer, read_eos_ids
from sdft_jax.plan.candidates import read_rules
from sdft_jax.reporting.reporter import SILENT
from sdft_jax.reporting.sinks import read_jsonl
from sdft_jax.training import checkpoint
from sdft_jax.training.checksums import damage
from sdft_jax.training.run_directory import RunDirectory

ROWS = [
    {"prompt": "sort b a", "demonstration": "a b", "answer": "a b", "system": "be brief", "skill": "sort"},
    {"prompt": [{"role": "user", "content": "say c"}], "demonstration": ["c", "d"], "answer": 3, "more": 0.5},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = [{"prompt": f"sort {i} a", "demonstration": "a", "answer": i, "tools": [{"a": i}]} for i in range(9)]
META = {"step": 4, "run": "ab", "scores": [0.5, None], "metrics": {"score": 0.5}, "inputs": {"rows": "12"}}
STAGE = {"name": "a", "data": {"path": "mini"}, "eval": {"path": "mini"}, "train": {"steps": 1}}
SETTINGS = {
    "preset": "sdft",
    "output": "runs/x",
    "data": {"path": "mini", "prompt_buckets": [8, 16], "template_kwargs": {"enable_thinking": False}},
    "optimizer": {"learning_rate": 1e-5, "freeze": ["embed"]},
    "profile": {"steps": "1:2"},
    "continual": {
        "stages": [STAGE],
        "suites": [{"name": "more", "path": "mini:old"}],
        "methods": ["sdft", "sft"],
        "learning_rates": [1e-5],
        "seeds": [0, 1],
    },
    "sharding": {"batch": ["data", "fsdp"], "mlp": "tensor"},
    "mesh": {"fsdp": -1},
}
GEMMA = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 155,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
WRAPPED = {"model_type": "gemma3", "tie_word_embeddings": True, "text_config": GEMMA}
YARN = {
    "model_type": "qwen3",
    "vocab_size": 155,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "mscale": 1,
    },
}
CHANGES = ({"hidden_size": None}, {"architectures": "a\nb"}, {"head_dim": 15}, {"rope_theta": -1.0})
TEXTS = (
    b"1" * 5000,
    b"2024-99-99",
    b"[" + b"0," * 50_000 + b"0]",
    b'{"continual": {"stages": [{"name": "a", "data": {"\\ud800": 1}}]}}',
)
MEASURED = {
    "more": {"accuracy": 0.5, "length": 3.0, "kl_to_base": None, "correct": [0, 1], "completions": []}
}
ANSWER = {
    **{"role": "student", "row": 0, "turn": None, "sample": 0, "input": "ab"},
    **{"prompt_tokens": 3, "completion": "a b"},
    **{"prompt": [{"role": "user", "content": "sort b a"}], "tokens": 3, "truncated": False, "nats": 0.5},
    **{"answer": "a b", "scorer": "exact", "correct": True, "fault": None},
}
EVALUATION = {"settings": {"eval.max_new_tokens": 8}, "digests": {"the weights of the model": "ab"}}
HUGE = json.dumps({"more": MEASURED["more"] | {"accuracy": 10**400}}).encode()
INDEX = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}


def read_model(directory: Path) -> object:
    architecture = read_architecture(directory)
    for stored in open_checkpoint(directory, architecture).values():
        stored.map()
    return Model(architecture).abstract_params("float32")


def read_tokenizer(directory: Path) -> object:
    return read_eos_ids(load_tokenizer(str(directory)), directory)


def read_settings(place: Path) -> object:
    config = load_config(place / "settings.yaml")
    return stages_of(config), arms_of(config)


def read_rows(path: Path) -> object:
    return load_examples(str(path), DataConfig(), answer=True)


def read_named_rows(name: str, place: Path) -> object:
    return read_rows(place / name)


def read_rule_file(place: Path) -> object:
    return read_rules(str(place / "rules.yaml"), load_config(None))


def read_template(place: Path) -> object:
    return load_template(f"file:{place}/template.txt")


def read_metrics(place: Path) -> object:
    return read_jsonl(place / "metrics.jsonl")


def read_manifest(place: Path) -> object:
    return damage(epath.Path(place / "4"))


def read_checkpoint(directory: Path) -> object:
    return checkpoint.read_meta(epath.Path(directory / "4"))


def read_run(place: Path) -> object:
    claim(place)
    return RunDirectory(str(place / "run")).load_config()


def read_measured(place: Path) -> None:
    """Read the results of a stage, and use them."""
    example = Example((), "", None, 0, "rows")
    rows = EvalSet((example, example), (), Dropped())
    config = load_config(None, ["train.method=sft"])
    plan = Plan(config, (Stage("a", config, {}),), {"sft": (NO_INPUTS,)}, {"more": (config, rows)}, SILENT)
    results = arms._once(plan, place / "measured.json", lambda: MEASURED, arms._is_measured)
    summarize(Arm(config.method, 1e-5, 0), ["more"], MEASURED, [results])


def read_comparison(place: Path) -> object:
    """Open the answers of an evaluation, which writes those that are intact again, and compare them."""
    try:
        return _compare(place)
    finally:
        with answer_log.open_log(place / "eval", lambda sentence: None) as log:
            summary.summarize(log.records.values())


def _compare(place: Path) -> object:
    comparison = compare(place / "eval", place / "eval", "student")
    return as_json(comparison, "student"), comparison_page(comparison, "student")


def claim_evaluation(place: Path) -> None:
    answer_log.claim(place / "eval", EVALUATION)


def claim(place: Path) -> None:
    config = load_config(None, [f"output={place}/run"])
    with RunDirectory(config.output).claimed(to_dict(config)):
        pass


def claim_of_another(place: Path) -> None:
    """Claim a run directory that another owns."""
    try:
        owner = os.open(place / "run/.lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return claim(place)
    try:
        fcntl.flock(owner, fcntl.LOCK_SH)
        return claim(place)
    finally:
        os.close(owner)


NO_INPUTS: Any = SimpleNamespace(new=None, validation=None, prior=None)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A file, and a function that reads it."""

    file: str
    read: Callable[[Path], object]
    """From the directory of the file."""
    valid: Any = None
    """The content, as bytes or as the value of JSON; None for that of the tiny model."""
    found: tuple[bytes, ...] = ()
    """Contents on which this or another reader has failed."""
    damaged: Callable[[Any], st.SearchStrategy[bytes]] = damaged
    """Returns the damaged forms of the content."""


READERS = {
    reader.file: reader
    for reader in (
        Reader("config.json", read_model),
        Reader("gemma/config.json", lambda place: read_architecture(place / "gemma"), WRAPPED),
        Reader(
            "yarn/config.json",
            lambda place: read_architecture(place / "yarn"),
            YARN,
            tuple(json.dumps(YARN | change).encode() for change in CHANGES),
        ),
        Reader(
            "generation_config.json",
            read_tokenizer,
            {"eos_token_id": [1, 2], "pad_token_id": 0},
            (json.dumps({"eos_token_id": "x" * 100_000}).encode(),),
        ),
        Reader("tokenizer.json", read_tokenizer),
        Reader("tokenizer_config.json", read_tokenizer),
        Reader("model.safetensors", read_model, damaged=damaged_header),
        Reader("model.safetensors.index.json", read_model, INDEX),
        Reader("settings.yaml", read_settings, SETTINGS, TEXTS),
        Reader("run/config.yaml", read_run, SETTINGS),
        Reader("rules.yaml", read_rule_file, SETTINGS["sharding"]),
        Reader("template.txt", read_template, b"$question and $demonstration"),
        Reader("rows.jsonl", lambda place: read_rows(place / "rows.jsonl"), ROWS, damaged=damaged_lines),
        *(
            Reader(name, functools.partial(read_named_rows, name), compress(LINES))
            for name, compress in (
                ("rows.jsonl.gz", gzip.compress),
                ("rows.jsonl.zst", lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True)),
            )
        ),
        Reader("rows.parquet", lambda place: read_rows(place / "rows.parquet")),
        Reader("saved/data-00000-of-00001.arrow", lambda place: read_rows(place / "saved")),
        Reader("saved/state.json", lambda place: read_rows(place / "saved")),
        Reader("saved/dataset_info.json", lambda place: read_rows(place / "saved")),
        Reader("metrics.jsonl", read_metrics, [{"step": 1, "loss": 0.5}], damaged=damaged_lines),
        Reader("eval/answers.jsonl", read_comparison, [ANSWER], damaged=damaged_lines),
        Reader("eval/evaluation.json", claim_evaluation, EVALUATION),
        Reader("4/meta/metadata", read_checkpoint, META),
        Reader("4/evaluation.json", read_checkpoint, {"crc32": 1, "evaluation": "{}"}),
        Reader("4/manifest.json", read_manifest, {"meta/metadata": [3, 4]}),
        Reader("measured.json", read_measured, MEASURED, (b'{"more": {}}', HUGE)),
        Reader("run/.lock", claim_of_another, {"host": "a", "process": 3, "since": "now"}),
    )
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_directory):
    """A directory with all files."""
    directory = tmp_path_factory.mktemp("hostile") / "place"
    shutil.copytree(tiny_directory, directory)
    table = datasets.Dataset.from_list(TABLE)
    table.to_parquet(directory / "rows.parquet")
    table.save_to_disk(directory / "saved")
    for reader in READERS.values():
        if reader.valid is not None and "index" not in reader.file:
            (directory / reader.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / reader.file).write_bytes(content_of(reader.valid))
    return directory


def content_of(valid: Any) -> bytes:
    return valid if isinstance(valid, bytes) else json.dumps(valid).encode()


@pytest.fixture
def filled(place, request):
    """The file of a reader, which gets its content back."""
    reader = READERS[request.param]
    file = place / reader.file
    before = file.read_bytes() if file.exists() else None
    yield reader, file
    _remove(file)
    if before is not None:
        file.write_bytes(before)


def _remove(file: Path) -> None:
    shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)


@pytest.mark.parametrize("filled", READERS, indirect=True)
def test_damaged_content(filled, place):
    reader, file = filled
    valid = reader.valid
    if valid is None:
        valid = json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()

    @given(reader.damaged(valid))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        survives(lambda: reader.read(place))

    for content in reader.found:
        check = example(content)(check)
    check()


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("filled", READERS, indirect=True)
def test_something_else_in_place_of_a_file(filled, place, obstacle):
    reader, file = filled
    _remove(file)
    OBSTACLES[obstacle](file)
    survives(lambda: reader.read(place))
