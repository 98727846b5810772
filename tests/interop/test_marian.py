"""MarianMT folders in and out, without transformers: what is kept, what is refused."""

import json

import numpy as np
import pytest

import transformer_jax
from tests.interop.marian_folders import (
    DECODER,
    ENCODER,
    GERMAN,
    SHARED,
    change,
    make_folder,
    save,
    stored,
)
from transformer_jax.interop.marian import export_marian, import_marian
from transformer_jax.interop.marian_layout import Numbering
from transformer_jax.system import UserError

REQUIRED = ("config.json", "model.safetensors", "source.spm", "vocab.json")
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
    # Theirs counts the start and the end, ours the end.
    assert settings.decoding.max_length == 11
    assert max(len(hypothesis.text.split()) for found in model.search(GERMAN) for hypothesis in found) <= 10
    assert settings.bad_words == ((0,),)


def test_without_settings_marian_has_its_customs(tmp_path):
    folder = make_folder(tmp_path / "marian", num_beams=3, max_position_embeddings=600)
    import_marian(folder, tmp_path / "out")
    decoding = transformer_jax.load(tmp_path / "out").settings.decoding
    assert (decoding.beam_size, decoding.max_length, decoding.alpha) == (3, 511, 1.0)


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
    for config in (first, second):  # the cards name the folders that were imported
        del config["sha256"]["README.md"], config["sha256"]["config.json"]
    assert first == second
    original, exported = stored(folder), stored(tmp_path / "exported")
    if tying == "inputs":
        original |= dict.fromkeys((ENCODER, DECODER), original.pop(SHARED))
    assert original.keys() == exported.keys()
    for name in original:
        np.testing.assert_array_equal(original[name].view(np.uint32), exported[name].view(np.uint32))
    for name in ("vocab.json", *(["target_vocab.json"] if SHAPES[tying].get("separate") else [])):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "exported" / name).read_text())


def test_a_piece_that_is_missing_is_a_hole(tmp_path):
    folder = make_folder(tmp_path / "marian")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    hole = vocabulary.pop(list(vocabulary)[-2])  # the piece before padding
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    import_marian(folder, tmp_path / "out")
    target = transformer_jax.load(tmp_path / "out").tokenizer.target
    assert target.vocab_size == len(vocabulary) + 1
    assert target.special_tokens == (0, 1, 2)
    assert target.piece(hole + 1) == f"<{hole + 1}>"


class TestIdsOfGeneration:
    """`generate` uses those in generation_config.json, whatever config.json has."""

    @pytest.mark.parametrize("in_config", [{}, {"decoder_start_token_id": None}, {"decoder_start_token_id": 0}])
    def test_the_start(self, tmp_path, in_config):
        folder = make_folder(tmp_path / "marian", generation={"decoder_start_token_id": 5}, **in_config)
        import_marian(folder, tmp_path / "out")
        assert (
            transformer_jax.load(tmp_path / "out").tokenizer.target.special_tokens.bos == 6
        )  # padding comes first here

    def test_the_start_is_that_of_config_json_where_it_is_not_there(self, tmp_path):
        generation = {"decoder_start_token_id": None}
        import_marian(
            make_folder(tmp_path / "marian", generation=generation, decoder_start_token_id=5), tmp_path / "out"
        )
        assert transformer_jax.load(tmp_path / "out").tokenizer.target.special_tokens.bos == 6

    def test_no_start(self, fresh):
        for name in ("config.json", "generation_config.json"):
            values = json.loads((fresh / name).read_text())
            del values["decoder_start_token_id"]
            (fresh / name).write_text(json.dumps(values))
        assert "config.json lacks the field decoder_start_token_id" in refusal(fresh)

    @pytest.mark.parametrize("fields", [{"eos_token_id": [0]}, {"forced_eos_token_id": None}, {"suppress_tokens": []}])
    def test_what_changes_nothing(self, fresh, fields):
        change(fresh, "generation_config.json", **fields)
        import_marian(fresh, fresh.parent / "out")

    @pytest.mark.parametrize(
        "fields",
        [
            {"decoder_start_token_id": 10**6},
            {"decoder_start_token_id": "5"},
            {"eos_token_id": 5},
            {"eos_token_id": [0, 5]},
            {"eos_token_id": False},
            {"pad_token_id": 5},
            {"forced_eos_token_id": 5},
        ],
    )
    def test_others_are_refused(self, fresh, fields):
        change(fresh, "generation_config.json", **fields)
        assert f"generation_config.json: {next(iter(fields))} is" in refusal(fresh)


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"model_type": "bart"}, "'bart'"),
            ({"model_type": None}, "null"),
            ({"model_type": ["marian"]}, "['marian']"),
            ({"activation_function": ["relu"]}, "['relu']"),
            ({"decoder_ffn_dim": 32}, "decoder_ffn_dim"),
            ({"decoder_attention_heads": 4}, "decoder_attention_heads"),
            ({"normalize_before": True}, "normalize_before"),
            ({"static_position_embeddings": False}, "static_position_embeddings"),
            ({"d_model": 15}, "d_model"),
            ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "encoder_attention_heads"),
            ({"activation_function": "gelu_new"}, "'gelu_new'"),
            ({"scale_embedding": 1}, "scale_embedding"),
            ({"encoder_layers": "2"}, "encoder_layers"),
            ({"encoder_layers": 9_999_999}, "config.json: encoder_layers is 9999999"),
            ({"encoder_layers": 2**30}, "encoder_layers"),
            ({"d_model": 2**30}, "d_model"),
            ({"d_model": 9_999_998}, "tensors of another shape"),
            ({"vocab_size": 2**31 - 1, "decoder_vocab_size": 2**31 - 1}, "vocab_size"),
            ({"vocab_size": 9_999_999, "decoder_vocab_size": 9_999_999}, "tensors of another shape"),
            ({"eos_token_id": 1}, "eos_token_id"),
            ({"pad_token_id": 0}, "pad_token_id"),
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
            {"length_penalty": 10**400},
            {"length_penalty": 1e308},
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

    def test_a_number_that_is_none(self, fresh):
        (fresh / "generation_config.json").write_text('{"length_penalty": 1e999}')
        assert "length_penalty is inf" in refusal(fresh)

    def test_long_values_are_cut(self, fresh):
        change(fresh, "config.json", model_type="x" * 10**6)
        assert len(refusal(fresh)) < 400

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
        assert "model.encoder.embed_positions.weight does not hold sinusoids" in refusal(fresh)

    def test_a_pickle_alone(self, fresh):
        (fresh / "model.safetensors").rename(fresh / "pytorch_model.bin")
        message = refusal(fresh)
        assert "pytorch_model.bin is a pickle" in message
        assert "runs the code" in message

    @pytest.mark.parametrize("name", [*REQUIRED, "target.spm"])
    def test_a_missing_or_linked_file(self, fresh, name):
        (fresh / name).rename(fresh / "elsewhere")
        assert name in refusal(fresh)
        (fresh / name).symlink_to(fresh / "elsewhere")
        assert "symbolic link" in refusal(fresh)

    @pytest.mark.parametrize("name", REQUIRED)
    def test_a_truncated_file(self, fresh, name):
        content = (fresh / name).read_bytes()
        (fresh / name).write_bytes(content[: len(content) // 2])
        assert name in refusal(fresh)

    @pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
    def test_a_link_to_nowhere_is_not_passed_over(self, fresh, name):
        (fresh / name).unlink()
        (fresh / name).symlink_to(fresh / "nowhere")
        assert f"{name} is a symbolic link" in refusal(fresh)

    def test_an_empty_sentencepiece_model(self, fresh):
        (fresh / "target.spm").write_bytes(b"")
        assert "target.spm is not a sentencepiece model" in refusal(fresh)

    @pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
    def test_half_characters(self, fresh, name):
        content = (fresh / name).read_text(encoding="utf-8")
        (fresh / name).write_text(content.replace("{", '{"\\ud800": 3,', 1), encoding="utf-8")
        assert f"{name} is not valid JSON" in refusal(fresh)

    def test_a_flag_that_is_none(self, fresh):
        change(fresh, "tokenizer_config.json", separate_vocabs=1)
        assert "tokenizer_config.json: separate_vocabs is 1, but must be true or false" in refusal(fresh)

    @pytest.mark.parametrize("tokens", [{"eos_token": "<pad>"}, {"unk_token": "</s>"}])
    def test_one_piece_for_two_markers(self, fresh, tokens):
        change(fresh, "tokenizer_config.json", **tokens)
        assert "special tokens must be three pieces, but are eos_token" in refusal(fresh)

    def test_ids_that_come_twice_or_are_none(self, fresh):
        change(fresh, "vocab.json", twice=3)
        assert "have the same id, 3" in refusal(fresh)
        change(fresh, "vocab.json", twice=True)
        assert "'twice' has the id True" in refusal(fresh)
        change(fresh, "vocab.json", twice=10**6)
        assert "'twice' has the id 1000000" in refusal(fresh)

    def test_a_vocabulary_without_a_marker(self, fresh):
        change(fresh, "tokenizer_config.json", eos_token="[END]")
        assert "lacks [END], the eos_token" in refusal(fresh)

    @pytest.mark.parametrize("language", ["de\n\n```python\nimport os", "a" * 257, "de`", 3])
    def test_a_language_that_is_none(self, fresh, language):
        change(fresh, "tokenizer_config.json", target_lang=language)
        assert "tokenizer_config.json: target_lang" in refusal(fresh)

    def test_a_name_of_several_languages(self, fresh):
        change(fresh, "tokenizer_config.json", source_lang="fr+fr_BE+fr_CA+zh-Hans")
        import_marian(fresh, fresh.parent / "out")
        assert transformer_jax.load(fresh.parent / "out").settings.source_language == "fr+fr_BE+fr_CA+zh-Hans"

    def test_an_output_that_exists(self, fresh):
        out = fresh.parent / "there"
        out.mkdir()
        with pytest.raises(UserError, match="exists"):
            import_marian(fresh, out)
        assert list(out.iterdir()) == []

    @pytest.mark.parametrize("name", ["nothing", "x" * 5000])
    def test_no_folder(self, tmp_path, name):
        with pytest.raises(UserError, match="is not a folder"):
            import_marian(tmp_path / name, tmp_path / "out")


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    folder = make_folder(tmp_path / "marian\udcff")
    import_marian(folder, tmp_path / "out")
    assert "a MarianMT model, marian? |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


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
