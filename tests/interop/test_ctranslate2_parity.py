"""Exported models, run by CTranslate2 itself."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.interop.marian_folders import GERMAN, make_folder
from tests.interop.readmes import names_of
from tests.tasks.toys import write_classifier, write_couplet_writer, write_stacks
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.interop.ctranslate2_export import export_ctranslate2
from transformer_jax.interop.marian import import_marian
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load, save

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: pip install ctranslate2")

LETTERS = "abcdeABCDE"
LINES = [f"{a}{b} {b}{c}{a}" for a in LETTERS for b in "bcd" for c in "aE"]


def random_model(path, *, kind="char", end_bias=0.0, settings=None, **options):
    """A folder with a model that is undecided enough for searches to matter."""
    joint = options.get("tie_embeddings", "all") in ("all", "inputs")
    tokenizer = train_pair(kind, [LETTERS + " ", *LINES], LINES[::-1], vocab_size=40, joint=joint)
    config = ModelConfig(
        **{
            "d_model": 16,
            "num_heads": 2,
            "d_ff": 24,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "output_bias": True,
            "source_vocab_size": tokenizer.source.vocab_size,
            "target_vocab_size": tokenizer.target.vocab_size,
        }
        | options
    )
    _, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), params)
    if config.output_bias:
        params["output_bias"] = params["output_bias"].at[tokenizer.target.special_tokens.eos].add(end_bias)
    save(
        path,
        task="translation",
        model_config=config,
        params=params,
        tokenizer_files=tokenizer.files(),
        settings=settings or {},
        scores={},
    )
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"num_encoder_layers": 2},
        {"norm_first": True, "num_decoder_layers": 2, "output_bias": False},
        {"final_norm": True, "activation": "gelu", "tie_embeddings": "inputs"},
        {"activation": "swish", "tie_embeddings": "none", "positions": "learned", "max_positions": 32},
        {"tie_embeddings": "output", "scale_embeddings": False, "num_heads": 4},
    ],
    ids=str,
)
def test_probabilities(tmp_path, options):
    model = load(random_model(tmp_path / "model", **options))
    export_ctranslate2(tmp_path / "model", tmp_path / "out")
    targets = [line[::-1] for line in LINES]
    ours = model.score(LINES, targets)
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    theirs = translator.score_batch([list(line) for line in LINES], [list(line) for line in targets])
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.token_log_probs, their.log_probs, atol=1e-4)


def test_search(tmp_path):
    model = load(random_model(tmp_path / "model", end_bias=2.0))
    export_ctranslate2(tmp_path / "model", tmp_path / "out")
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    lengths = set()
    for beam_size, alpha, limit in ((1, 0.6, 9), (4, 0.6, 9), (4, 0.0, 9), (4, 1.2, 3)):
        theirs = translator.translate_batch(
            [list(line) for line in LINES],
            beam_size=beam_size,
            length_penalty=alpha,
            disable_unk=True,
            suppress_sequences=[["<pad>"], ["<s>"]],
            min_decoding_length=0,
            max_decoding_length=limit,
            return_scores=True,
        )
        search = {"beam_size": beam_size, "alpha": alpha, "max_length": limit + 1, "conventions": "ctranslate2"}
        ours = model.search(LINES, **search)
        assert [found[0].text for found in ours] == ["".join(result.hypotheses[0]) for result in theirs]
        if beam_size > 1:
            scores = [result.scores[0] for result in theirs]
            np.testing.assert_allclose([found[0].score for found in ours], scores, atol=1e-4)
        lengths |= {len(found[0].text) for found in ours}
    assert len(lengths) > 3
    search = {"beam_size": 4, "alpha": 0.6, "max_length": 10}
    assert model.translate(LINES, **search) != model.translate(LINES, conventions="ctranslate2", **search)


@pytest.mark.parametrize(
    ("kind", "settings", "options"),
    [
        ("bpe", {"lowercase": True, "decoding": {"max_length": 10}}, {}),
        ("word", {"decoding": {"max_length": 3}}, {"tie_embeddings": "output"}),
        ("char", {}, {"positions": "learned", "max_positions": 12}),
    ],
)
def test_the_readme_translates(tmp_path, kind, settings, options):
    folder = random_model(tmp_path / "model", kind=kind, end_bias=1.0, settings=settings, **options)
    export_ctranslate2(folder, tmp_path / "out")
    texts = [*LINES[:20], "", "unknown ??", "</s>"]
    expected = load(folder).translate(texts, conventions="ctranslate2")
    assert len(set(expected)) > 2
    translate = names_of(tmp_path / "out")["translate"]
    assert translate(texts) == expected
    assert translate([]) == []


def test_a_model_of_marian(tmp_path):
    settings = {"max_length": 12, "num_beams": 3, "length_penalty": 0.8}
    marian = make_folder(tmp_path / "marian", separate=True, share=False, tie=False, temper=20.0, generation=settings)
    import_marian(marian, tmp_path / "model")
    export_ctranslate2(tmp_path / "model", tmp_path / "out")
    texts = [*GERMAN, f">>fra<< {GERMAN[0]}"]
    found = names_of(tmp_path / "out")["translate"](texts)
    assert found == load(tmp_path / "model").translate(texts, conventions="ctranslate2")
    assert len(set(found)) > 2


def test_quantization(tmp_path):
    random_model(tmp_path / "model")
    export_ctranslate2(tmp_path / "model", tmp_path / "float32")
    export_ctranslate2(tmp_path / "model", tmp_path / "int8", quantization="int8")
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("float32", "int8")]
    # The table of positions, the biases and the norms stay.
    positions = 1074 * 16 * 4
    assert sizes[1] - positions < 0.5 * (sizes[0] - positions)
    sources, targets = [list(line) for line in LINES], [list(line[::-1]) for line in LINES]
    exact, rounded = (
        np.concatenate([s.log_probs for s in translator.score_batch(sources, targets)])
        # Computed in float32: without VNNI, the sums of int8 products overflow on some processors.
        for translator in (
            ctranslate2.Translator(str(tmp_path / name), compute_type="float32") for name in ("float32", "int8")
        )
    )
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1)
    assert 0 < np.abs(rounded - exact).mean() < 0.2
    assert np.ptp(exact) > 4


def test_a_writer_of_couplets(tmp_path):
    export_ctranslate2(write_couplet_writer(tmp_path / "model"), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "may break them" in readme
    assert "conventions=" not in readme


def test_a_text_that_is_too_long_is_not_cut(tmp_path):
    random_model(tmp_path / "model", positions="learned", max_positions=12)
    export_ctranslate2(tmp_path / "model", tmp_path / "out")
    with pytest.raises(RuntimeError, match="position"):
        names_of(tmp_path / "out")["translate"](["abcde" * 4])


def test_markers_are_told(tmp_path):
    random_model(tmp_path / "model")
    export_ctranslate2(tmp_path / "model", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (config["decoder_start_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert config["add_source_eos"]
    assert not config["add_source_bos"]


def test_what_cannot_be_exported(tmp_path):
    random_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"quantization is 'int3', but must be one of int8, .*float32"):
        export_ctranslate2(tmp_path / "model", tmp_path / "out", quantization="int3")
    with pytest.raises(UserError, match=r"is not an encoder-decoder model.*--to stablehlo"):
        export_ctranslate2(write_classifier(tmp_path / "classifier"), tmp_path / "out")
    with pytest.raises(UserError, match=r"is not an encoder-decoder model for text; name one"):
        export_ctranslate2(write_stacks(tmp_path / "stacks"), tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        export_ctranslate2(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken exists"):
        export_ctranslate2("no model is looked at", tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "model", "stacks", "taken"]
    assert not any((tmp_path / "taken").iterdir())


def test_ctranslate2_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2.converters", None)
    with pytest.raises(UserError, match="pip install ctranslate2"):
        export_ctranslate2(tmp_path / "model", tmp_path / "out")
