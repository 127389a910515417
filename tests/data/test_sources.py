import gzip
import io
import json
import os
import shutil
from pathlib import Path

import datasets
import fsspec
import numpy as np
import PIL
import pyarrow
import pytest
import tensorflow_datasets as tfds

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import (
    index_examples,
    index_text_examples,
    load_examples,
    make_examples,
    make_text_examples,
    read_rows,
)
from sdft_jax.data.media import media_columns
from sdft_jax.errors import SdftError

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHAT = [
    {"role": "user", "content": "é?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "q"},
]
ROWS = [{"prompt": f"q{i}", "chat": CHAT, "demonstration": ["a", "b"], "answer": i} for i in range(4)]


def write(path, *lines):
    path.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    return str(path)


def load(path, **config):
    return load_examples(str(path), DataConfig(**config))


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_jsonl(tmp_path):
    rows = load(write(tmp_path / "a.jsonl", *map(json.dumps, ROWS), "", " "), limit=3)
    assert [r.row for r in rows] == [0, 1, 2]
    assert rows[1].prompt == ({"role": "user", "content": "q1"},)
    assert rows[1].demonstration == "a\nb"
    assert rows[1].answer == 1


def test_jsonl_with_bom_crlf_and_line_separators(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '\ufeff{"prompt": "a\u2028b", "demonstration": "d"}\r\n{"prompt": "c", "demonstration": "d"}'.encode()
    )
    assert [r.prompt[0]["content"] for r in load(path)] == ["a\u2028b", "c"]


def test_system_prompts_of_science_rows():
    rows = load(FIXTURES / "science.jsonl", demonstration="answer")
    assert [m["role"] for m in rows[0].prompt] == ["system", "user"]
    assert rows[0].demonstration == rows[0].answer
    assert rows[0].answer in "ABCD"


def test_tooluse_rows_without_demonstrations_can_be_evaluated():
    path, config = str(FIXTURES / "tooluse.jsonl"), DataConfig(answer="golden_answer")
    rows = load_examples(path, config, demonstration=False, answer=True)
    assert rows[0].demonstration == ""
    assert rows[0].answer[0]["Action"] == "getRandomAxolotlImage"
    with pytest.raises(
        SdftError,
        match=r"tooluse.jsonl, line 1: field 'demonstration' is missing \(found: prompt, golden_answer",
    ):
        load_examples(path, config)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"line 2 is not valid JSON \(Expecting"),
        ("", r"line 2 is not valid JSON \(it is empty\)"),
        ("[1]", "line 2 has type list of int, not object"),
        (
            '{"demonstration": "d"}',
            "line 2: field 'prompt' is missing .*add it, or name another field with data.prompt=FIELD",
        ),
        ('{"prompt": "p"}', "line 2: field 'demonstration' is missing .*data.demonstration=FIELD"),
        ('{"prompt": " ", "demonstration": "d"}', "line 2: field 'prompt' is empty"),
        ('{"prompt": "p", "demonstration": ""}', "line 2: field 'demonstration' is empty"),
        ('{"prompt": "p", "demonstration": []}', "line 2: field 'demonstration' has type list: give"),
        ('{"prompt": "p", "demonstration": ["a", 1]}', "has type list of int and str"),
        ('{"prompt": 5, "demonstration": "d"}', "line 2: field 'prompt' has type int"),
        ('{"prompt": [], "demonstration": "d"}', "last message of field 'prompt' is not a user message"),
        ('{"prompt": ["a"], "demonstration": "d"}', "message 0 of field 'prompt' is not a chat message"),
        (
            '{"prompt": [{"role": "user", "content": [1]}], "demonstration": "d"}',
            "content of message 0 .* is not a string",
        ),
        ('{"prompt": [{"role": "user", "content": ""}], "demonstration": "d"}', "field 'prompt' is empty"),
        (
            '{"prompt": [{"role": "assistant", "content": "a"}], "demonstration": "d"}',
            "is not a user message",
        ),
        ('{"prompt": "p", "demonstration": "d", "system": 3}', "line 2: field 'system' has type int"),
        (
            '{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}], '
            '"demonstration": "d", "system": "s"}',
            "fields 'system' and 'prompt' both contain a system prompt",
        ),
    ],
)
def test_invalid_row_raises_with_its_location(tmp_path, line, problem):
    good = '{"prompt": "p", "demonstration": "d"}'
    with pytest.raises(SdftError, match=problem) as caught:
        load(write(tmp_path / "a.jsonl", good, line, good))
    assert "a.jsonl" in str(caught.value)


def test_invalid_utf8_raises_with_its_location(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(SdftError, match=r"a.jsonl, line 1 is not valid JSON .*UTF-8"):
        load(tmp_path / "a.jsonl")


def test_missing_answer_raises(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "p", "demonstration": "d"}')
    with pytest.raises(SdftError, match=r"field 'answer' is missing .*data.answer=FIELD"):
        load_examples(path, DataConfig(), answer=True)


ARTICLE = {"prompt": "p", "demonstration": "d", "article": ["a", "b"], "skill": "wiki"}


def test_context_may_be_another_field_than_the_demonstration():
    config = DataConfig(context="article")
    both, only_context, only_demonstration = (
        make_examples([ARTICLE], config, "a.jsonl", demonstration=demonstration, context=context)[0]
        for demonstration, context in [(True, True), (False, True), (True, False)]
    )
    assert (both.demonstration, both.context) == ("d", "a\nb")
    assert (only_context.demonstration, only_context.context) == ("", "a\nb")
    assert (only_demonstration.demonstration, only_demonstration.context) == ("d", None)


def test_context_defaults_to_the_demonstration():
    (row,) = make_examples([ARTICLE], DataConfig(), "a.jsonl", demonstration=False, context=True)
    assert (row.demonstration, row.context) == ("d", None)
    (row,) = make_examples([{"prompt": "p"}], DataConfig(), "a.jsonl", demonstration=False)
    assert (row.demonstration, row.context) == ("", None)


def test_only_requested_fields_are_required():
    config, rows = DataConfig(context="article"), [{"prompt": "p", "article": "a"}]
    assert make_examples(rows, config, "a.jsonl", demonstration=False, context=True)[0].context == "a"
    with pytest.raises(SdftError, match=r"line 1: field 'demonstration' is missing"):
        make_examples(rows, config, "a.jsonl", context=True)
    with pytest.raises(SdftError, match=r"line 1: field 'source' is missing .*data\.context=FIELD"):
        make_examples(rows, DataConfig(context="source"), "a.jsonl", demonstration=False, context=True)
    with pytest.raises(SdftError, match=r"line 1: field 'article' is empty"):
        make_examples([{"prompt": "p", "article": " "}], config, "a.jsonl", demonstration=False, context=True)


def test_several_demonstrations():
    rows = [{"prompt": "p", "shown": ["d", ["e", "f"], "g"]}]
    config = DataConfig(demonstrations="shown")
    (row,) = make_examples(rows, config, "a.jsonl")
    assert (row.demonstration, row.others) == ("d", ("e\nf", "g"))
    (row,) = make_examples([{"prompt": "p"}], config, "a.jsonl", demonstration=False)
    assert (row.demonstration, row.others) == ("", ())
    (row,) = make_examples([{"prompt": "p", "demonstration": "d", "shown": None}], config, "a.jsonl")
    assert (row.demonstration, row.others) == ("d", ())


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        (None, r"line 1: field 'shown' is missing .*data\.demonstrations=FIELD"),
        ("d", r"line 1: field 'shown' has type str: give a list of one or more demonstrations"),
        ([], "line 1: field 'shown' has type list: give a list of one or more demonstrations"),
        (["d", 5], r"line 1: field 'shown\[1\]' has type int"),
        (["d", " "], r"line 1: field 'shown\[1\]' is empty"),
    ],
)
def test_invalid_lists_of_demonstrations_raise(shown, problem):
    with pytest.raises(SdftError, match=problem):
        make_examples([{"prompt": "p", "shown": shown}], DataConfig(demonstrations="shown"), "a.jsonl")


def test_skill_is_optional():
    with_skill, without_skill = make_examples(
        [ARTICLE, {"prompt": "p"}], DataConfig(), "a.jsonl", demonstration=False
    )
    assert (with_skill.skill, without_skill.skill) == ("wiki", None)


def test_raw_texts():
    rows = [{"text": "one"}, {"text": ["two", "lines"]}, {"text": "three"}]
    examples = make_text_examples(rows, DataConfig(limit=2), "a.jsonl")
    assert [(example.demonstration, example.row, example.location) for example in examples] == [
        ("one", 0, "a.jsonl, line 1"),
        ("two\nlines", 1, "a.jsonl, line 2"),
    ]
    assert make_text_examples([ARTICLE], DataConfig(text="article"), "a.jsonl")[0].demonstration == "a\nb"
    with pytest.raises(SdftError, match=r"line 2: field 'text' is missing .*data\.text=FIELD"):
        make_text_examples([{"text": "one"}, {"prompt": "p"}], DataConfig(), "a.jsonl")
    with pytest.raises(SdftError, match=r"line 1: field 'text' is empty"):
        make_text_examples([{"text": " "}], DataConfig(), "a.jsonl")


def test_source_that_is_empty_or_does_not_exist_raises(tmp_path):
    with pytest.raises(SdftError, match=r"a.jsonl: there are no rows"):
        load(write(tmp_path / "a.jsonl", "", ""))
    for path in (str(tmp_path / "no.jsonl"), "data/no/such", "no.jsonl"):
        with pytest.raises(SdftError, match=f"{path} does not exist"):
            read_rows(path)


def test_unreachable_hub_raises_with_the_need_for_a_connection(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'nobody/such' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        SdftError,
        match=r"nobody/such cannot be read \(Couldn't reach .*Hub, which needs a network connection",
    ):
        read_rows("nobody/such")


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("owner/rows", "owner/rows", "train"),
        ("owner/rows:test", "owner/rows", "test"),
        ("gsm8k:test", "gsm8k", "test"),
    ],
)
def test_hugging_face_names(monkeypatch, tmp_path, path, name, split):
    monkeypatch.chdir(tmp_path)
    calls = []
    dataset = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda n, split: calls.append((n, split)) or dataset)
    rows = load(path, prompt="chat")
    assert calls == [(name, split)]
    assert (rows[1].prompt, rows[1].demonstration, rows[1].answer) == (tuple(CHAT), "a\nb", 1)
    assert rows[1].location == f"{path}, row 1"


def test_hugging_face_directories(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([3])).save_to_disk(tmp_path / "dict")
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "train.parquet")
    (tmp_path / "lines").mkdir()
    write(tmp_path / "lines" / "train.jsonl", *map(json.dumps, ROWS))
    for name in ("one", "dict", "parquet", "lines", "parquet/train.parquet"):
        rows = load(tmp_path / name, prompt="chat")
        assert [r.answer for r in rows] == [0, 1, 2, 3], name
        assert rows[0].prompt == tuple(CHAT), name
        assert rows[0].demonstration == "a\nb", name
    assert [r.answer for r in load(tmp_path / "dict", split="test")] == [3]
    assert [r.answer for r in load(f"{tmp_path}/dict:test")] == [3]
    for name in ("dict", "parquet"):
        with pytest.raises(SdftError, match=r"(?s)split.*nope.*data.split"):
            read_rows(str(tmp_path / name), "nope")


BROKEN = datasets.Image(decode=False).encode_example({"bytes": b"no image"})
"""An image that cannot be decoded."""


@pytest.fixture
def illustrated(tmp_path):
    """Directories and files of the same rows; the image of the second one cannot be decoded."""
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("prompt", "demonstration", "text", "answer")}
        | {"figure": datasets.Image()}
    )
    texts = {"prompt": "p", "demonstration": "d", "text": "t", "answer": "a"}
    rows = [texts | {"figure": figure} for figure in (None, BROKEN)]
    dataset = datasets.Dataset.from_list(rows, features=features)
    with pytest.raises(PIL.UnidentifiedImageError):
        dataset[1]
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "arrow")
    return [str(tmp_path / name) for name in ("a.parquet", "arrow")]


def test_a_column_of_images_is_refused_and_not_decoded(illustrated):
    for path in illustrated:
        rows, name = read_rows(path), Path(path).name
        (row,) = make_examples(rows, DataConfig(limit=1), path, answer=True)
        assert (row.prompt, row.demonstration, row.answer) == (({**CHAT[2], "content": "p"},), "d", "a")
        (text,) = make_text_examples(rows, DataConfig(limit=1), path)
        assert text.demonstration == "t"
        for read in (make_examples, make_text_examples):
            with pytest.raises(
                SdftError, match=rf"{name}, row 1: field 'figure' contains an image, and models"
            ):
                read(rows, DataConfig(), path)


@pytest.mark.parametrize(
    ("feature", "value", "kind"),
    [
        (datasets.List(datasets.Image()), [BROKEN], "an image"),
        (
            {"title": datasets.Value("string"), "clip": datasets.Video()},
            {"title": "t", "clip": BROKEN},
            "a video",
        ),
        ({"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, BROKEN, "a file"),
    ],
)
def test_columns_of_media_are_recognized_by_their_type(feature, value, kind, tmp_path):
    assert media_columns({"page": feature, "clip": datasets.Audio()}) == {"page": kind, "clip": "a sound"}
    empty = {"title": "t", "clip": None} if kind == "a video" else None
    rows = [{"prompt": "p", "demonstration": "d", "page": page} for page in (empty, value)]
    texts = {name: datasets.Value("string") for name in ("prompt", "demonstration")}
    features = datasets.Features(texts | {"page": feature})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", limit=1)[0].demonstration == "d"
    with pytest.raises(SdftError, match=f"row 1: field 'page' contains {kind}, and models"):
        load(tmp_path / "a.parquet")


def test_missing_field_is_reported_with_the_columns_that_are_not_decoded(illustrated):
    problem = r"field 'other' is missing \(found: prompt, demonstration, text, answer, figure\)"
    for path in illustrated:
        for settings in ({"demonstration": "other"}, {"prompt": "other"}):
            with pytest.raises(SdftError, match=problem):
                load(path, **settings)
        rows = read_rows(path)
        with pytest.raises(SdftError, match=problem):
            make_text_examples(rows, DataConfig(text="other"), path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image", "an image"),
        ("images", "an image"),
        ("image_url", "an image"),
        ("img", "an image"),
        ("Picture", "an image"),
        ("pixel_values", "an image"),
        ("video", "a video"),
        ("audios", "a sound"),
    ],
)
def test_a_row_with_an_image_is_refused(name, kind, tmp_path):
    rows = [{"prompt": "p", "demonstration": "d", "text": "t", name: value} for value in (None, ["a.png"])]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    for path in (tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        assert load(path, limit=1)[0].demonstration == "d"
        problem = (
            rf"{path.name}, (line 2|row 1): field '{name}' contains {kind}, .* remove the field, or the row"
        )
        with pytest.raises(SdftError, match=problem):
            load(path)
        with pytest.raises(SdftError, match=problem):
            make_text_examples(read_rows(str(path)), DataConfig(), str(path))


def test_a_row_with_an_image_within_a_text_is_refused(tmp_path):
    row = {"prompt": "p", "demonstration": "d", "screen": "data:image/png;base64,iVBORw0KGgo="}
    write(tmp_path / "a.jsonl", json.dumps(row))
    with pytest.raises(SdftError, match=r"a\.jsonl, line 1: field 'screen' contains an image"):
        load(tmp_path / "a.jsonl")


def test_a_field_that_a_setting_names_is_a_text(tmp_path):
    """Also if its name is one for images, as in a data set of transcripts."""
    row = {"video": "the transcript", "demonstration": "d", "image_id": 5, "image_caption": "c"}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    assert load(path, prompt="video")[0].demonstration == "d"
    config = DataConfig(prompt="demonstration", context="video")  # for a teacher that is not needed here
    rows = read_rows(str(path))
    assert len(make_examples(rows, config, "a.jsonl", demonstration=False, context=False, answer=False)) == 1


def test_saved_format_of_a_dataset_changes_no_row(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.set_format("numpy", columns=["answer", "prompt"])
    dataset.save_to_disk(tmp_path / "arrow")
    row = load(tmp_path / "arrow")[1]
    assert (row.demonstration, row.answer, type(row.answer)) == ("a\nb", 1, int)


def test_none_values_of_a_message_are_removed(tmp_path):
    turns = [{"role": "user", "content": "a", "name": None}]
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": turns, "demonstration": "d"}))
    assert load(path)[0].prompt == ({"role": "user", "content": "a"},)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    text = tfds.features.Text()
    features = {
        "prompt": text,
        "chat": tfds.features.Sequence({"role": text, "content": text}),
        "demonstration": tfds.features.Sequence(text),
        "answer": tfds.features.Text(),
        "system": text,
        "figure": tfds.features.Image(),
    }

    class Toy(tfds.core.GeneratorBasedBuilder):
        """A dataset with the rows of ROWS."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            parts = {"train": ROWS, "test": ROWS[:1], "figures": [ROWS[0] | {"figures": True}]}
            return {name: self._generate_examples(rows) for name, rows in parts.items()}

        def _generate_examples(self, rows=()):
            for i, row in enumerate(rows):
                figure = io.BytesIO(b"no image" if "figures" in row else b"")
                row = {name: value for name, value in row.items() if name != "figures"}
                yield i, row | {"answer": str(row["answer"]), "system": "", "figure": figure}

    builder = Toy(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_tfds(tfds_dir):
    for path in (tfds_dir, f"tfds:{tfds_dir}"):
        rows = load(path, prompt="chat")
        assert sorted(r.answer for r in rows) == ["0", "1", "2", "3"]
        assert rows[0].prompt == tuple(CHAT)
        assert rows[0].demonstration == "a\nb"
    assert [r.prompt[0]["content"] for r in load(tfds_dir, split="test")] == ["q0"]
    assert [r.prompt[0]["content"] for r in load(f"{tfds_dir}:test")] == ["q0"]
    with pytest.raises(SdftError, match=r"cannot be read .*split 'nope'"):
        read_rows(f"tfds:{tfds_dir}", "nope")
    with pytest.raises(SdftError, match="row 0: field 'figure' contains an image, and models"):
        load(tfds_dir, split="figures")


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("tfds:toy", "toy", "train"),
        ("tfds:toy:test", "toy", "test"),
        ("tfds:toy/small:1.0.0", "toy/small:1.0.0", "train"),
        ("tfds:toy:1.0.0:train[:50%]", "toy:1.0.0", "train[:50%]"),
    ],
)
def test_tfds_names(monkeypatch, tfds_dir, path, name, split):
    calls = []
    source = tfds.builder_from_directory(tfds_dir).as_data_source("train")
    monkeypatch.setattr(tfds, "data_source", lambda n, split: calls.append((n, split)) or source)
    assert len(read_rows(path)) == len(ROWS)
    assert calls == [(name, split)]


def test_tfds_files_that_need_tensorflow(tfds_dir, tmp_path):
    directory = tmp_path / "toy" / "1.0.0"
    shutil.copytree(tfds_dir, directory)
    info = (directory / "dataset_info.json").read_text()
    (directory / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    for file in directory.glob("*array_record*"):
        file.rename(directory / file.name.replace("array_record", "tfrecord"))
    with pytest.raises(
        SdftError,
        match=rf"^{directory} cannot be read \(.*\): give a dataset .* as ArrayRecord, as by `tfds build "
        "--file_format=array_record`, since TFRecord files require TensorFlow",
    ):
        read_rows(str(directory))


def test_unknown_tfds_name_raises():
    with pytest.raises(SdftError, match=r"tfds:no_such_set cannot be read \(Dataset no_such_set not found\)"):
        read_rows("tfds:no_such_set")


def test_mini():
    train, test = load("mini", limit=8), load("mini:drib:test", limit=8)
    assert len(train) == len(test) == 8
    assert train[0].demonstration
    assert train[0].answer
    assert "drib" in test[0].prompt[0]["content"]
    assert not {r.prompt[0]["content"] for r in load("mini:drib")} & {r.prompt[0]["content"] for r in test}
    with pytest.raises(SdftError, match=r"mini:nope: there is no such skill; .*blax"):
        read_rows("mini:nope")


@pytest.mark.parametrize("name", ["train[1].parquet", "a*b.parquet", "{x,y}.parquet"])
def test_name_of_a_file_is_not_a_pattern(tmp_path, name):
    for wrong in ("train1.parquet", "aab.parquet", "x.parquet"):
        datasets.Dataset.from_list([{"prompt": "wrong", "demonstration": "d"}]).to_parquet(tmp_path / wrong)
    datasets.Dataset.from_list([{"prompt": "right", "demonstration": "d"}]).to_parquet(tmp_path / "written")
    (tmp_path / "written").rename(tmp_path / name)
    assert load(tmp_path / name)[0].prompt[0]["content"] == "right"


def test_files_below_a_directory_whose_name_is_a_pattern(tmp_path):
    directory = tmp_path / "exp[v2]"
    directory.mkdir()
    write(directory / "train.jsonl", *map(json.dumps, ROWS))
    assert len(load(directory)) == len(load(directory / "train.jsonl")) == 4


def test_split_of_a_single_dataset(tmp_path):
    directory = tmp_path / "data"
    datasets.Dataset.from_list(ROWS, split="train").save_to_disk(directory)
    assert len(read_rows(str(directory))) == len(read_rows(f"{directory}:train")) == 4
    with pytest.raises(
        SdftError, match=rf"^{directory}: there is no split 'heldout'; set data\.split to one"
    ):
        read_rows(f"{directory}:heldout")


def test_rows_of_parquet_have_no_keys_of_other_rows(tmp_path):
    def row(name, arguments):
        call = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return {
            "prompt": [{"role": "assistant", "content": "", "calls": call}, CHAT[2]],
            "demonstration": "d",
        }

    rows = [row("weather", {"city": "Oslo"}), row("clock", {"zone": "CET"})]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for example, wanted in zip(load(tmp_path / "a.parquet"), rows, strict=True):
        assert list(example.prompt) == wanted["prompt"]


def test_answers_of_a_numeric_column(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        *(f'{{"prompt": "q", "demonstration": "d", "answer": {x}}}' for x in ("42.0", "0.5", "NaN", "7")),
    )
    assert [row.answer for row in load(file)] == [42, 0.5, None, 7]
    with pytest.raises(SdftError, match=r"line 3: field 'answer' is missing"):
        load_examples(file, DataConfig(), answer=True)


def test_web_address_is_refused():
    path = "https://host.example/rows.jsonl"
    with pytest.raises(SdftError, match=rf"^{path} is a web address: download the file"):
        read_rows(path)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket in memory, and an empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


def test_every_kind_of_file_and_directory_in_a_bucket(bucket, tmp_path, tfds_dir):
    dataset = datasets.Dataset.from_list(ROWS)
    local = tmp_path / "local"
    dataset.save_to_disk(local / "arrow")
    datasets.DatasetDict(test=dataset).save_to_disk(local / "dict")
    for number in range(2):
        part = dataset.select(range(2 * number, 2 * number + 2))
        part.to_parquet(local / "shards" / f"train-{number:05}-of-00002.parquet")
    write(local / "rows.jsonl", *map(json.dumps, ROWS))
    (local / "rows.jsonl.gz").write_bytes(gzip.compress((local / "rows.jsonl").read_bytes()))
    shutil.copytree(tfds_dir, local / "tfds")
    bucket.put(str(local), "/bucket", recursive=True)
    names = ("arrow", "dict:test", "shards", "shards/train-00001-of-00002.parquet", "rows.jsonl")
    for name in (*names, "rows.jsonl.gz", "tfds", "tfds:test"):
        rows = load(f"memory://bucket/{name}", prompt="chat")
        expected = {"tfds:test": 1, "shards/train-00001-of-00002.parquet": 2}.get(name, 4)
        assert len(rows) == expected, name
        assert rows[0].prompt == tuple(CHAT), name
        assert rows[0].location.startswith(f"memory://bucket/{name.partition(':')[0]}"), name


def test_faults_of_data_in_a_bucket_name_its_address(bucket):
    bucket.pipe({"/bucket/a.jsonl": b'{"prompt": "p"}\n{', "/bucket/a.parquet": b"x", "/bucket/e.jsonl": b""})
    for name, problem in (
        ("a.jsonl", ", line 1: field 'demonstration' is missing"),
        ("a.parquet", " cannot be read .*give a readable Parquet file"),
        ("e.jsonl", ": there are no rows"),
        ("none.jsonl", " does not exist: give a file or a directory in the bucket"),
        ("none:test", " does not exist"),
    ):
        with pytest.raises(SdftError, match=rf"^memory://bucket/{name}{problem}"):
            load(f"memory://bucket/{name}")
    with pytest.raises(SdftError, match=r"^memory://bucket/a\.jsonl, line 2 is not valid JSON"):
        read_rows("memory://bucket/a.jsonl")[1]


ZSTD = pyarrow.Codec("zstd")


@pytest.mark.parametrize(
    ("end", "compress"),
    [("gz", gzip.compress), ("zst", lambda data: ZSTD.compress(data, asbytes=True))],
)
def test_compressed_lines(tmp_path, end, compress):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    file = tmp_path / f"a.jsonl.{end}"
    file.write_bytes(compress((text + "{").encode()))
    assert [row.answer for row in load(file, limit=4)] == [0, 1, 2, 3]
    with pytest.raises(SdftError, match=rf"a\.jsonl\.{end}, line 5 is not valid JSON"):
        load(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SdftError, match=rf"a\.jsonl\.{end} is not a complete .* file"):
        load(file)
    with pytest.raises(SdftError, match=rf"none\.jsonl\.{end} does not exist"):
        read_rows(f"none.jsonl.{end}")


def test_rows_are_read_on_access(tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps(ROWS[0]), "{", json.dumps({"prompt": "p"}))
    examples = index_examples(read_rows(file), DataConfig(), file)
    assert (len(examples), examples[0].answer) == (3, 0)
    for index, problem in ((1, "line 2 is not valid JSON"), (2, "line 3: field 'demonstration' is missing")):
        with pytest.raises(SdftError, match=problem):
            examples[index]
    texts = index_text_examples(read_rows(file), DataConfig(text="prompt", limit=1), file)
    assert [text.demonstration for text in texts] == ["q0"]


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 100_000 + "]" * 100_000])
def test_row_that_is_json_but_no_text(tmp_path, value):
    file = write(tmp_path / "a.jsonl", f'{{"prompt": {value}, "demonstration": "d"}}')
    with pytest.raises(SdftError, match=r"a\.jsonl, line 1 is not valid JSON \(it "):
        load(file)


def test_messages_as_lists_of_unequal_length(tmp_path):
    prompt = {"role": ["user", "user"], "content": ["q"]}
    file = write(tmp_path / "a.jsonl", json.dumps({"prompt": prompt, "demonstration": "d"}))
    with pytest.raises(SdftError, match=r"line 1: the parts of field 'prompt' are lists of unequal length"):
        load(file)


def test_damaged_table_is_refused_before_its_rows_end_the_process(tmp_path):
    texts = [f"question {number}" for number in range(100, 140)]
    datasets.Dataset.from_list([{"prompt": text, "demonstration": "x"} for text in texts]).save_to_disk(
        tmp_path
    )
    (file,) = tmp_path.glob("*.arrow")
    offsets = np.arange(41, dtype=np.int32) * len(texts[0])
    content = file.read_bytes()
    assert content.count(offsets.tobytes()) == 1
    broken = offsets.copy()
    broken[20:40] = 2**30
    file.write_bytes(content.replace(offsets.tobytes(), broken.tobytes()))
    with pytest.raises(
        SdftError, match=rf"^{tmp_path} cannot be read \(.*offset.*\): give a dataset directory"
    ):
        load_examples(str(tmp_path), DataConfig())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "directory/state.json", "rows"])
def test_pipe_in_place_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    path = tmp_path / name.split("/")[0]
    with pytest.raises(SdftError, match=rf"^{tmp_path}/{name} is not a regular file: "):
        load_examples(str(path), DataConfig())
