"""The code in exported READMEs, run on texts."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.interop.marian_folders import CODES, GERMAN, make_folder
from tests.interop.readmes import code_of
from tests.tasks.toys import tiny_config, tiny_params, tiny_tokenizer, write_bundle, write_couplet_writer
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.interop.marian import import_marian
from transformer_jax.interop.snippets import imports_of, tokenizer_snippet
from transformer_jax.interop.stablehlo_export import export_stablehlo
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel, Seq2SeqSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / "imported"
    import_marian(make_folder(folder.with_name("marian")), folder)
    return folder


@pytest.mark.parametrize("pieces", [False, True])
def test_a_text_is_cut_as_marians_tokenizer_cuts_it(folder, pieces):
    model = load(folder)
    snippet = tokenizer_snippet(model, pieces=pieces)
    names = {"folder": str(folder)}
    exec("\n".join([*snippet.imports, *snippet.setup]), names)
    source = model.tokenizer.source
    ids = {piece: number for number, piece in enumerate(source.pieces)}
    for text in (*GERMAN, f"{CODES[0]} Wo?", ">>de\nu<< Wo?", "Wo >>deu<<"):
        found = eval(snippet.encode, names | {"text": text})
        looked_up = [ids.get(piece, source.special_tokens.unk) for piece in found] if pieces else found
        assert looked_up == source.encode(text)


@pytest.mark.parametrize(
    ("write", "settings"),
    [(write_bundle, {"lowercase": True}), (write_bundle, {}), (write_couplet_writer, {})],
    ids=["lowercase", "as is", "couplets"],
)
def test_normalization_is_that_of_the_model(tmp_path, write, settings):
    model = load(write(tmp_path / "model", **settings))
    names = {}
    exec("\n".join(imports_of(model.normalization)), names)
    odd = ("e\u0301", "葛\U000e0100", "❤\ufe0f", "\u200d春\u00ad风\x1b", "e\u034f\u0301 \u2800", "\u1100\u1161", "\x1c")
    for text in ("Ab C\t", "", " 春 风\n", "\u3000É", *odd):
        assert eval(model.normalization, names | {"text": text}) == model._normalized(text)


@dataclass(frozen=True)
class ShouterSettings(Seq2SeqSettings):
    title = "A model that nobody registered"
    limits = "None."


class Shouter(Seq2SeqModel[ShouterSettings]):
    settings_type = ShouterSettings
    normalization = "text.upper()"
    not_exported = "It does not shout here."


def test_a_model_class_of_another_task_is_exported_as_it_says(tmp_path):
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    export_stablehlo(Shouter(config, tiny_params(config), tokenizer), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "text.upper()" in code_of(tmp_path / "out")
    assert "It does not shout here." in readme
    assert "# A model that nobody registered, as StableHLO" in readme


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
def test_texts_are_cut_and_joined_as_the_two_sides_do(tmp_path, kind):
    sources, targets = ["Hello, world ² 2!"] * 3, ["你好，世界！ x² ▁ e\u0301\u3000हिन्दी"] * 3
    pair = train_pair(kind, sources, targets, 100, True, source_normalization="nmt_nfkc")
    for name, content in pair.files().items():
        (tmp_path / name).write_bytes(content)
    snippet = tokenizer_snippet(SimpleNamespace(tokenizer=pair, normalization="text"), pieces=False)
    names = {"folder": str(tmp_path)}
    exec("\n".join([*snippet.imports, *snippet.setup]), names)
    for text in (*sources, *targets, " Ｈｅｌｌｏ,\t world\u3000"):
        assert eval(snippet.encode, names | {"text": text}) == pair.source.encode(text)
        ids = pair.target.encode(text)
        assert eval(snippet.decode, names | {"output": ids}) == pair.target.decode(ids)
