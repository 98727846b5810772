"""Models of this package written for transformers: which can be, and what is refused."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.interop.marian_folders import ENGLISH, GERMAN, stored
from tests.tasks.toys import write_bundle, write_classifier
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.interop.marian import export_marian
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.system import UserError
from transformer_jax.tasks.translation.translator import Translator


def own_model(*, joint=True, seed=0, **options):
    """A translator with a tokenizer that is trained here and random weights."""
    pair = train_pair("unigram", GERMAN, ENGLISH if joint else ENGLISH[:2], 60, joint)
    sizes = {"source_vocab_size": pair.source.vocab_size, "target_vocab_size": pair.target.vocab_size}
    small = {"d_model": 8, "num_heads": 2, "d_ff": 12, "num_encoder_layers": 1, "num_decoder_layers": 1}
    config = ModelConfig(**(small | sizes | options))
    _, params = split(Seq2Seq(config, rngs=nnx.Rngs(seed)))
    return Translator(config, jax.tree.map(lambda x: 3 * x, params), pair)


def refusal(model, out, **options):
    with pytest.raises(UserError) as caught:
        export_marian(model, out, **options)
    assert not out.exists()
    return str(caught.value)


def test_padding_comes_last_and_start_and_unknown_are_forbidden(tmp_path):
    model = own_model()
    export_marian(model, tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text())
    size = model.tokenizer.source.vocab_size
    assert [vocabulary[piece] for piece in ("<s>", "</s>", "<unk>", "<pad>")] == [0, 1, 2, size - 1]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 0
    assert sorted(generation["bad_words_ids"]) == [[0], [2], [size - 1]]
    table, ours = stored(tmp_path / "out")["model.shared.weight"], model.params["target_embedding"]["table"]
    # Sines first there, sines and cosines in turn here.
    np.testing.assert_array_equal(table[:-1, [0, 4, 1, 5, 2, 6, 3, 7]], ours[1:])
    np.testing.assert_array_equal(table[-1, [0, 4, 1, 5, 2, 6, 3, 7]], ours[0])


def test_two_vocabularies_have_padding_at_one_id(tmp_path):
    model = own_model(joint=False, tie_embeddings="output")
    assert model.tokenizer.source.vocab_size != model.tokenizer.target.vocab_size
    export_marian(model, tmp_path / "out")
    sides = [json.loads((tmp_path / "out" / name).read_text()) for name in ("vocab.json", "target_vocab.json")]
    assert sides[0]["<pad>"] == sides[1]["<pad>"] == min(map(len, sides)) - 1
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["separate_vocabs"] is True


@pytest.mark.parametrize(
    ("options", "architecture", "expected"),
    [
        ({"norm_first": True}, "marian", "--to pegasus"),
        ({}, "pegasus", "--to marian"),
        ({"final_norm": True}, "marian", "final_norm"),
        ({"positions": "learned"}, "marian", "learned"),
        ({"norm_first": True, "joint": False, "tie_embeddings": "none"}, "pegasus", "tie_embeddings"),
        ({}, "bart", "marian, pegasus"),
    ],
)
def test_what_the_architecture_has_not_is_refused(tmp_path, options, architecture, expected):
    assert expected in refusal(own_model(**options), tmp_path / "out", architecture=architecture)


def test_models_that_it_cannot_hold_are_refused(tmp_path):
    assert "config.tokenizer.kind" in refusal(write_bundle(tmp_path / "chars"), tmp_path / "out")
    assert "not an encoder-decoder model" in refusal(write_classifier(tmp_path / "classifier"), tmp_path / "out")
    assert "is not a folder" in refusal(tmp_path / "nothing", tmp_path / "out")


def test_an_output_that_exists_stays(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        export_marian(own_model(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_readme_tells_how_to_call_it(tmp_path):
    model = own_model(norm_first=True)
    export_marian(model, tmp_path / "out", architecture="pegasus")
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "PegasusForConditionalGeneration.from_pretrained" in readme
    assert 'conventions="transformers"' in readme
