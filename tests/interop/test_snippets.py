"""The code of exported READMEs, run: what it makes of a text."""

import pytest

from tests.interop.marian_folders import CODES, GERMAN, make_folder
from transformer_jax.interop.marian import import_marian
from transformer_jax.interop.snippets import tokenizer_snippet
from transformer_jax.tasks.model_folder import load


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
