"""Cards: metadata that the Hub reads, the license of the base, and edited cards, which stay."""

import importlib.util
import io
import json
from contextlib import redirect_stdout

import pytest
from huggingface_hub import ModelCard, metadata_load

from make_fixtures import DIRECTORY
from sdft_jax.models import load_model, save_pretrained
from sdft_jax.models.hf.adapter import save_adapter
from sdft_jax.models.hf.model_card import (
    Base,
    find_base,
    is_edited,
    make_card,
    metadata,
    plain_adapter_card,
    plain_card,
    write_card,
)
from tiny import adapted, tiny_model

QWEN = "Qwen/Qwen2.5-0.5B-Instruct"


def directory_with_card(directory, front_matter):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "README.md").write_text(f"---\n{front_matter}\n---\n\n# A model\n")
    return str(directory)


def test_the_license_and_the_name_of_a_base_on_the_hub(tmp_path):
    directory = directory_with_card(
        tmp_path / "copy", "license: other\nlicense_name: qwen\nlicense_link: LICENSE\ntags: [x]"
    )
    base = find_base(QWEN, directory)
    link = f"https://huggingface.co/{QWEN}/blob/main/LICENSE"
    assert base == Base(QWEN, QWEN, {"license": "other", "license_name": "qwen", "license_link": link})
    data = ModelCard(plain_card(base, "Qwen2ForCausalLM", "mine")).data
    assert (data.base_model, data.license, data.license_name, data.license_link) == (
        QWEN,
        "other",
        "qwen",
        link,
    )
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")


def test_a_local_base_has_the_name_of_its_directory_only(tmp_path):
    directory = directory_with_card(tmp_path / "qwen", "license: apache-2.0")
    base = find_base(directory, directory)
    assert base == Base("qwen", None, {"license": "apache-2.0"})
    card = plain_adapter_card(base, 3, "mine")
    assert str(tmp_path) not in card
    assert ModelCard(card).data.base_model is None
    assert find_base(directory, directory, QWEN).hub == QWEN


def test_the_cache_of_the_hubs_client_names_the_model(tmp_path):
    directory = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct" / "snapshots" / "0123abc"
    assert find_base(str(directory), directory_with_card(directory, "license: mit")).name == QWEN


def test_a_license_in_config_json(tmp_path):
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert find_base("mini", str(tmp_path)) == Base("mini", None, {"license": "mit"})


@pytest.mark.parametrize(
    "text", ["", "no metadata", "---\n- a\n---\n", "---\na: [\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_base_without_a_license(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "config.json").write_text("{}")
    base = find_base("owner/name", str(tmp_path))
    assert base.license == {}
    card = plain_card(base, "Qwen3ForCausalLM", "mine")
    assert "[owner/name](https://huggingface.co/owner/name) names no license: look it up" in card
    assert "license" not in ModelCard(card).data.to_dict()


def test_a_new_model_has_no_base():
    card = plain_card(None, "Qwen3ForCausalLM", "mine")
    assert "base_model" not in card
    assert "License" not in card


def test_names_are_quoted_in_yaml_and_in_code():
    name = 'a "b": {c}'
    card = make_card(metadata(Base(name, name), "peft", [name]), "x", {})
    assert ModelCard(card).data.tags == [name]
    compile(
        plain_adapter_card(Base(name), 3, name).split("```python\n")[1].partition("```")[0], "card", "exec"
    )


def test_an_export_replaces_its_card_and_keeps_an_edited_one(tmp_path):
    model, params = load_model(DIRECTORY / "qwen3")
    out = tmp_path / "out"
    save_pretrained(model, params, None, out)
    first = (out / "README.md").read_text()
    assert metadata_load(out / "README.md")["library_name"] == "transformers"
    assert write_card(out, make_card(metadata(None, "peft", []), "other", {}))
    save_pretrained(model, params, None, out)
    assert (out / "README.md").read_text() == first
    edited = first + "My remarks.\n"
    (out / "README.md").write_text(edited)
    assert is_edited(out)
    save_pretrained(model, params, None, out)
    assert not write_card(out, first)
    assert (out / "README.md").read_text() == edited


def test_a_users_card_alone_in_a_directory_stays(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    save_adapter(*adapted(*tiny_model()), tmp_path, QWEN)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "README.md").unlink()
    save_adapter(*adapted(*tiny_model()), tmp_path, QWEN)
    assert metadata_load(tmp_path / "README.md")["base_model"] == QWEN


def run_code(card, old, new):
    """Run the first code of a card, with `new` for `old`, and return what it prints."""
    code = card.split("```python\n")[1].partition("```")[0]
    assert old in code
    with redirect_stdout(io.StringIO()) as out:
        exec(code.replace(old, new), {})
    return out.getvalue()


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs peft")
def test_the_code_of_a_card_gives_the_same_text_as_this_library(tmp_path):
    """The model is the embedded one, which answers in words; the adapters change its answer."""
    import sdft_jax as sdft
    from sdft_jax.algorithm import join
    from sdft_jax.models.hf.adapter import load_adapter
    from sdft_jax.models.hf.tokenizer import load_tokenizer

    plain, base = load_model("mini", dtype="float32")
    save_pretrained(plain, base, None, tmp_path / "base")
    model, params = adapted(plain, base, sdft.LoraConfig(rank=3, targets=("v", "down")), scale=0.15)
    save_adapter(model, params, tmp_path / "adapter", str(tmp_path / "base"))
    save_pretrained(model, params, None, tmp_path / "merged", dtype="float32")

    config = sdft.load_config(
        None,
        ["model.path=mini", "sampling.temperature=0", "sampling.max_new_tokens=64", "data.max_prompt=64"],
    )
    tokenizer = load_tokenizer(str(tmp_path / "base"))

    def ours(model, params):
        speaker = sdft.Speaker(model, params, tokenizer, (tokenizer.eos_token_id,))
        return sdft.answer(speaker, ["Hello"], config)[0][0].strip()

    expected = ours(model, params)
    assert expected != ours(plain, base)
    merged = (tmp_path / "merged" / "README.md").read_text()
    adapter = (tmp_path / "adapter" / "README.md").read_text()
    assert run_code(merged, '"merged"', json.dumps(str(tmp_path / "merged"))).strip() == expected
    for name in ("adapter", "base"):
        adapter = adapter.replace(json.dumps(name), json.dumps(str(tmp_path / name)))
    assert run_code(adapter, str(tmp_path), str(tmp_path)).strip() == expected
    read = load_adapter(model, tmp_path / "adapter", "float32", tmp_path / "base")
    assert ours(model, join(base, read)) == expected
