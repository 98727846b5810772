"""MarianMT folders in and out, without transformers: what is kept, what is refused."""

import json

import numpy as np
import pytest

import transformer_jax
from tests.interop.marian_folders import (
    CODES,
    DECODER,
    ENCODER,
    ENGLISH,
    GERMAN,
    SHARED,
    change,
    make_folder,
    save,
    stored,
)
from transformer_jax.errors import UserError
from transformer_jax.interop.marian import import_marian
from transformer_jax.interop.marian_export import export_marian
from transformer_jax.interop.marian_layout import Numbering

SHAPES = {
    "all": {},
    "output": {"separate": True, "share": False},
    "inputs": {"tie": False, "activation": "gelu"},
    "none": {"separate": True, "share": False, "tie": False, "activation": "relu", "scale": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("folders") / "marian", generation={"num_beams": 2, "max_length": 12})


@pytest.fixture(scope="module")
def model(folder):
    import_marian(folder, folder.parent / "imported")
    return transformer_jax.load(folder.parent / "imported")


@pytest.fixture
def fresh(tmp_path):
    return make_folder(tmp_path / "marian", generation={})


def refusal(folder):
    out = folder.parent / "out"
    with pytest.raises(UserError) as caught:
        import_marian(folder, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(folder.parent.glob(".out*"))
    return str(caught.value)


def test_an_imported_model_translates(model):
    texts = model.translate(GERMAN)
    assert len(texts) == len(GERMAN)
    assert texts == model.translate(GERMAN, batch_size=1)
    assert model.translate([""]) == [""]


def test_settings_come_from_the_folder(model):
    settings = model.settings
    assert (settings.source_language, settings.target_language) == ("deu", "eng")
    assert settings.max_source_length == 64
    assert settings.decoding.conventions == "transformers"
    assert (settings.decoding.beam_size, settings.decoding.alpha) == (2, 1.0)
    # Theirs counts the start and the end.
    assert settings.decoding.max_length == 10
    assert max(len(hypothesis.text.split()) for found in model.search(GERMAN) for hypothesis in found) <= 10
    assert settings.bad_words == ((0,),)


def test_without_settings_marian_has_its_customs(tmp_path):
    folder = make_folder(tmp_path / "marian", num_beams=3, max_position_embeddings=600)
    import_marian(folder, tmp_path / "out")
    decoding = transformer_jax.load(tmp_path / "out").settings.decoding
    assert (decoding.beam_size, decoding.max_length, decoding.alpha) == (3, 510, 1.0)


@pytest.mark.parametrize("padding", [0, 3, 9])
def test_numbering_puts_padding_first_and_back(padding):
    numbering = Numbering(padding, 10)
    ids = list(range(10))
    assert numbering.here(padding) == 0
    assert [numbering.there(numbering.here(i)) for i in ids] == ids
    assert [numbering.here(int(i)) for i in numbering.order()] == ids
    assert list(numbering.order()[1:]) == [i for i in ids if i != padding]


@pytest.mark.parametrize("tying", SHAPES)
def test_import_export_import_gives_the_same_bytes(tmp_path, tying):
    folder = make_folder(tmp_path / "marian", **SHAPES[tying], generation={"num_beams": 2, "length_penalty": 0.6})
    if tying == "inputs":
        # As transformers 4 stores it: the tables of both sides are one.
        tensors = stored(folder)
        save(folder, {name: tensor for name, tensor in tensors.items() if name not in (ENCODER, DECODER)})
    import_marian(folder, tmp_path / "first")
    export_marian(tmp_path / "first", tmp_path / "exported")
    import_marian(tmp_path / "exported", tmp_path / "second")
    assert transformer_jax.load(tmp_path / "first").model_config.tie_embeddings == tying
    for name in ("model.safetensors", "source.marian.json", "target.marian.json", "target.marian.model"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first == second
    original, exported = stored(folder), stored(tmp_path / "exported")
    if tying == "inputs":
        original |= dict.fromkeys((ENCODER, DECODER), original.pop(SHARED))
    assert original.keys() == exported.keys()
    for name in original:
        np.testing.assert_array_equal(original[name].view(np.uint32), exported[name].view(np.uint32))
    for name in ("vocab.json", *(["target_vocab.json"] if SHAPES[tying].get("separate") else [])):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "exported" / name).read_text())


class TestTokenizer:
    def test_ids_are_marians_but_for_padding(self, folder, model):
        vocabulary = json.loads((folder / "vocab.json").read_text())
        source = model.tokenizer.source
        assert source.vocab_size == len(vocabulary)
        assert source.markers == (0, 1, 2)
        assert source.piece(0) == "<pad>"
        for piece, number in vocabulary.items():
            if piece != "<pad>":
                assert source.piece(number + 1) == piece

    def test_texts_come_back(self, model):
        for texts, tokenizer in ((GERMAN, model.tokenizer.source), (ENGLISH, model.tokenizer.target)):
            for text in texts:
                assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_codes_of_languages_are_tokens(self, model):
        source = model.tokenizer.source
        code, *rest = source.encode(f"{CODES[1]} Wo ist der Bahnhof?")
        assert source.piece(code) == CODES[1]
        assert rest == source.encode(" Wo ist der Bahnhof?")
        assert source.encode(">>xyz<< Wo")[0] == source.markers.unknown

    @pytest.mark.parametrize("text", ["</s>", "<pad>", "a</s>b", ">></s><<", "<unk>", "\ud800", "\u4e2d"])
    def test_no_text_is_a_marker(self, model, text):
        source = model.tokenizer.source
        assert not {0, source.markers.end} & set(source.encode(text))

    def test_ids_without_a_piece_say_nothing(self, tmp_path):
        folder = make_folder(tmp_path / "marian")
        vocabulary = json.loads((folder / "vocab.json").read_text())
        hole = vocabulary.pop(list(vocabulary)[-2])  # the piece before padding
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        import_marian(folder, tmp_path / "out")
        target = transformer_jax.load(tmp_path / "out").tokenizer.target
        assert target.piece(hole + 1) == f"<{hole + 1}>"
        ids = target.encode("the dog")
        assert target.decode([ids[0], hole + 1, *ids[1:]]) == target.decode(ids)


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"model_type": "bart"}, "'bart'"),
            ({"model_type": None}, "None"),
            ({"decoder_ffn_dim": 32}, "decoder_ffn_dim"),
            ({"decoder_attention_heads": 4}, "decoder_attention_heads"),
            ({"normalize_before": True}, "normalize_before"),
            ({"static_position_embeddings": False}, "static_position_embeddings"),
            ({"d_model": 15}, "d_model"),
            ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "encoder_attention_heads"),
            ({"activation_function": "gelu_new"}, "'gelu_new'"),
            ({"scale_embedding": 1}, "scale_embedding"),
            ({"encoder_layers": "2"}, "encoder_layers"),
            ({"encoder_layers": 2**30}, "too few"),
            ({"vocab_size": 10, "decoder_start_token_id": 9}, "vocab.json"),
            ({"eos_token_id": 1}, "eos_token_id"),
            ({"pad_token_id": 0}, "pad_token_id"),
            ({"decoder_start_token_id": 10**6}, "decoder_start_token_id"),
            ({"max_position_embeddings": None}, "max_position_embeddings"),
            ({"dropout": 1}, "dropout"),
        ],
    )
    def test_another_model_is_told_by_its_field(self, fresh, fields, expected):
        change(fresh, "config.json", **fields)
        message = refusal(fresh)
        assert expected in message
        assert str(fresh) in message

    @pytest.mark.parametrize(
        "fields",
        [
            {"early_stopping": True},
            {"no_repeat_ngram_size": 3},
            {"num_beams": 0},
            {"length_penalty": "1"},
            {"max_length": 2},
            {"max_new_tokens": 1},
            {"bad_words_ids": [[10**6]]},
            {"bad_words_ids": [1]},
            {"renormalize_logits": 2},
        ],
    )
    def test_a_search_that_we_have_not_is_told_by_its_field(self, fresh, fields):
        change(fresh, "generation_config.json", **fields)
        assert f"generation_config.json: {next(iter(fields))} is" in refusal(fresh)

    def test_tensors_that_do_not_fit_are_named(self, fresh):
        tensors = stored(fresh)
        tensors["model.encoder.extra"] = tensors.pop("model.encoder.layers.0.fc1.bias")
        tensors["model.decoder.layers.0.fc2.weight"] = tensors["model.decoder.layers.0.fc2.weight"][:, :3]
        save(fresh, tensors)
        message = refusal(fresh)
        assert "unknown tensors: model.encoder.extra;" in message
        assert "missing tensors: model.encoder.layers.0.fc1.bias;" in message
        assert "model.decoder.layers.0.fc2.weight 16x3 instead of 16x24" in message

    def test_a_table_that_is_not_there_is_named(self, fresh):
        tensors = stored(fresh)
        del tensors[SHARED]
        save(fresh, tensors)
        assert f"missing tensors: {SHARED}" in refusal(fresh)

    def test_tables_that_differ_though_they_are_one(self, fresh):
        tensors = stored(fresh)
        save(fresh, tensors | {"lm_head.weight": tensors[SHARED] + 1})
        assert "tie_word_embeddings" in refusal(fresh)

    def test_positions_that_are_no_sinusoids(self, fresh):
        tensors = stored(fresh)
        save(fresh, tensors | {"model.encoder.embed_positions.weight": np.zeros((64, 16), np.float32)})
        assert "model.encoder.embed_positions.weight holds no sinusoids" in refusal(fresh)

    def test_a_pickle_alone(self, fresh):
        (fresh / "model.safetensors").rename(fresh / "pytorch_model.bin")
        message = refusal(fresh)
        assert "pytorch_model.bin is a pickle" in message
        assert "runs the code" in message

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json"])
    def test_a_missing_or_linked_file(self, fresh, name):
        (fresh / name).rename(fresh / "elsewhere")
        assert name in refusal(fresh)
        (fresh / name).symlink_to(fresh / "elsewhere")
        assert "symbolic link" in refusal(fresh)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "source.spm", "vocab.json"])
    def test_a_truncated_file(self, fresh, name):
        content = (fresh / name).read_bytes()
        (fresh / name).write_bytes(content[: len(content) // 2])
        assert name in refusal(fresh)

    def test_ids_that_come_twice_or_are_none(self, fresh):
        change(fresh, "vocab.json", twice=3)
        assert "have the same id, 3" in refusal(fresh)
        change(fresh, "vocab.json", twice=True)
        assert "'twice' has the id True" in refusal(fresh)

    def test_a_vocabulary_without_a_marker(self, fresh):
        change(fresh, "tokenizer_config.json", eos_token="[END]")
        assert "lacks [END], the eos_token" in refusal(fresh)

    @pytest.mark.parametrize("language", ["de\n\n```python\nimport os", "a" * 33, "de`", 3])
    def test_a_language_that_is_none(self, fresh, language):
        change(fresh, "tokenizer_config.json", target_lang=language)
        assert "tokenizer_config.json: target_lang" in refusal(fresh)

    def test_an_output_that_exists(self, fresh):
        out = fresh.parent / "there"
        out.mkdir()
        with pytest.raises(UserError, match="exists"):
            import_marian(fresh, out)
        assert list(out.iterdir()) == []

    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match="is no folder"):
            import_marian(tmp_path / "nothing", tmp_path / "out")


def test_redundant_tensors_are_taken(tmp_path):
    folder = make_folder(tmp_path / "marian")
    tensors = stored(folder)
    angles = np.arange(64)[:, None] / 10000 ** (np.arange(0, 16, 2) / 16)
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float16)
    more = dict.fromkeys((ENCODER, DECODER, "lm_head.weight"), tensors[SHARED])
    save(folder, tensors | more | {"model.encoder.embed_positions.weight": sinusoids})
    import_marian(folder, tmp_path / "more")
    save(folder, tensors)
    import_marian(folder, tmp_path / "less")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("more", "less")]
    assert weights[0] == weights[1]
