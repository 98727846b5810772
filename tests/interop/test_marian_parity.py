"""Random MarianMT models here and in transformers: the same ids, logits, outputs and perplexities."""

import copy
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transformer_jax
from tests.interop.marian_folders import CODES, ENGLISH, GERMAN, make_folder
from tests.interop.readmes import names_of
from tests.interop.test_marian_export import own_model
from transformer_jax.config import DecodingConfig
from transformer_jax.interop.marian import export_marian, import_marian
from transformer_jax.tasks.translation.translator import TranslatorSettings

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SHAPES = {
    "all": {"seed": 2, "end_bias": 5.0},
    "output": {"separate": True, "share": False, "activation": "gelu", "layers": (1, 2), "end_bias": 4.5},
    "untied": {"tie": False, "activation": "relu", "scale": False, "layers": (1, 1), "end_bias": 2.0},
    "none": {"separate": True, "share": False, "tie": False, "layers": (1, 1), "end_bias": 3.0},
}
TEXTS = (*GERMAN, *ENGLISH)


def tokenizer_in(folder):
    with warnings.catch_warnings():
        # It recommends a normalizer of punctuation, which it never calls.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return transformers.MarianTokenizer.from_pretrained(folder)


class Both:
    """One folder, opened by either."""

    def __init__(self, folder, ours):
        self.folder = folder
        self.ours = transformer_jax.load(ours)
        self.theirs = transformers.MarianMTModel.from_pretrained(folder).eval()
        self.tokenizer = tokenizer_in(folder)
        self.source, self.target = self.ours.tokenizer.source, self.ours.tokenizer.target

    def batch(self, texts):
        return self.tokenizer(texts, return_tensors="pt", padding=True)

    def generate(self, texts, **options):
        """Their outputs as texts, in groups of `num_return_sequences`, and their ids without the start."""
        with torch.inference_mode():
            ids = self.theirs.generate(**self.batch(list(texts)), **options)[:, 1:]
        found = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        size = options.get("num_return_sequences", 1)
        return [found[i : i + size] for i in range(0, len(found), size)], ids


@pytest.fixture(scope="module", params=SHAPES)
def both(request, tmp_path_factory):
    parent = tmp_path_factory.mktemp(request.param)
    folder = make_folder(parent / "marian", **SHAPES[request.param], generation={"num_beams": 4, "max_length": 30})
    import_marian(folder, parent / "ours")
    return Both(folder, parent / "ours")


def renumbered(tokenizer, ids):
    """Their ids in our numbers."""
    padding = tokenizer.padding_place
    return [0 if i == padding else i + (i < padding) for i in ids]


ANY_TEXT = st.text() | st.lists(st.sampled_from(" ".join((*TEXTS, *CODES)).split())).map(" ".join)
SPECIAL_TOKENS = ("</s>", "<unk>", "<pad>")


@pytest.mark.parametrize("both", ["all", "none"], indirect=True)
@settings(max_examples=40, deadline=None)
@given(text=ANY_TEXT.filter(lambda text: not any(marker in text for marker in SPECIAL_TOKENS)))
def test_the_same_ids(both, text):
    assert renumbered(both.source, both.tokenizer(text).input_ids) == [
        *both.source.encode(text),
        both.source.special_tokens.eos,
    ]
    theirs = both.tokenizer(text_target=text).input_ids
    assert renumbered(both.target, theirs) == [*both.target.encode(text), both.target.special_tokens.eos]


@pytest.mark.parametrize("both", ["all", "none"], indirect=True)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_same_text(both, data):
    pieces = range(1, both.target.vocab_size)
    ids = data.draw(st.lists(st.sampled_from([i for i in pieces if i != both.target.special_tokens.eos])))
    padding = both.target.padding_place
    theirs = [i - (i <= padding) for i in ids]
    assert both.target.decode(ids) == both.tokenizer.decode(theirs, skip_special_tokens=True)


def test_the_same_logits_with_padding(both):
    batch = both.batch(GERMAN)
    labels = both.tokenizer(text_target=ENGLISH, return_tensors="pt", padding=True).input_ids
    inputs = torch.cat([torch.full((len(GERMAN), 1), both.theirs.config.decoder_start_token_id), labels[:, :-1]], dim=1)
    with torch.inference_mode():
        # In float64, so that the difference is our own rounding.
        expected = copy.deepcopy(both.theirs).double()(**batch, decoder_input_ids=inputs).logits.numpy()
    source = jnp.array([renumbered(both.source, row) for row in batch.input_ids.tolist()])
    target = jnp.array([renumbered(both.target, row) for row in inputs.tolist()])
    found = np.asarray(both.ours.model(source, target))
    order = renumbered(both.target, range(both.target.vocab_size))
    filled = (labels != both.theirs.config.pad_token_id).numpy()
    assert not filled.all()
    np.testing.assert_allclose(found[..., order][filled], expected[filled], rtol=0, atol=1e-4)


def test_the_same_perplexity(both):
    scores = both.ours.score(GERMAN, ENGLISH)
    batch = both.batch(GERMAN)
    labels = both.tokenizer(text_target=ENGLISH, return_tensors="pt", padding=True).input_ids
    padding = both.tokenizer(text_target=ENGLISH, padding=True, return_tensors="pt").attention_mask == 0
    inputs = torch.cat([torch.full((len(GERMAN), 1), both.theirs.config.decoder_start_token_id), labels[:, :-1]], dim=1)
    with torch.inference_mode():
        loss = both.theirs(**batch, decoder_input_ids=inputs, labels=labels.masked_fill(padding, -100)).loss
    tokens = sum(len(score.token_log_probs) for score in scores)
    assert tokens == int((~padding).sum())
    assert -sum(score.log_prob for score in scores) / tokens == pytest.approx(loss.item(), abs=1e-5)


def search(both, texts, *, num_beams, num_return_sequences=1, length_penalty=None, max_length=None):
    """What ours finds with their options."""
    found = both.ours.search(
        texts,
        beam_size=num_beams,
        n_best=num_return_sequences,
        alpha=length_penalty,
        **({} if max_length is None else {"max_length": max_length - 1}),
    )
    return [[hypothesis.text for hypothesis in hypotheses] for hypotheses in found]


def test_the_same_outputs(both):
    expected, ids = both.generate(TEXTS, num_beams=4)
    assert search(both, TEXTS, num_beams=4) == expected
    lengths = {row.index(0) if 0 in row else len(row) for row in ids.tolist()}
    assert len(lengths) > 1, "outputs of one length compare little"
    assert len({tuple(row) for row in ids.tolist()}) > 3


@pytest.mark.parametrize(
    ("both", "options"),
    [
        ("none", {"num_beams": 1}),
        ("none", {"num_beams": 4, "length_penalty": 0.6, "num_return_sequences": 4}),
        ("none", {"num_beams": 4, "max_length": 7}),
        *(pytest.param(shape, {"num_beams": 1}, marks=pytest.mark.slow) for shape in ("all", "output", "untied")),
        *(
            pytest.param(shape, {"num_beams": 4, "length_penalty": alpha}, marks=pytest.mark.slow)
            for shape in ("all", "none")
            for alpha in (-1.0, 0.0, 2.0)
        ),
        *(pytest.param("none", {"num_beams": 1, "max_length": n}, marks=pytest.mark.slow) for n in (3, 5)),
    ],
    ids=str,
    indirect=["both"],
)
def test_the_same_outputs_with_other_options(both, options):
    expected, _ = both.generate(TEXTS, **options)
    assert search(both, TEXTS, **options) == expected


def test_their_library_reads_what_we_write(both, tmp_path):
    export_marian(both.ours, tmp_path / "exported")
    model, info = transformers.MarianMTModel.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = tokenizer_in(tmp_path / "exported")
    batch = tokenizer(GERMAN, return_tensors="pt", padding=True)
    assert batch.input_ids.tolist() == both.batch(GERMAN).input_ids.tolist()
    inputs = batch.input_ids[:, :3] % both.theirs.config.decoder_vocab_size
    with torch.inference_mode():
        logits = [each.eval()(**batch, decoder_input_ids=inputs).logits for each in (model, both.theirs)]
        outputs = [each.generate(**batch) for each in (model, both.theirs)]
    assert torch.equal(*logits)
    assert torch.equal(*outputs)
    fields = [json.loads((f / "generation_config.json").read_text()) for f in (tmp_path / "exported", both.folder)]
    assert fields[1].items() <= fields[0].items()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("marian", {"joint": False, "tie_embeddings": "output", "activation": "gelu"}),
        ("pegasus", {"norm_first": True, "tie_embeddings": "inputs", "output_bias": True}),
    ],
)
def test_our_own_models_answer_there_as_their_readme_says(tmp_path, architecture, options):
    model = own_model(**options)
    # Outputs end where the source says: generation_config.json has no such limit, so the README must.
    model.settings = TranslatorSettings(decoding=DecodingConfig(max_extra_tokens=2, batch_size=2))
    folder = tmp_path / "exported"
    export_marian(model, folder, architecture=architecture)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        names = names_of(folder)
        found = [names["translate"]([text])[0] for text in GERMAN]
    assert found == model.translate(GERMAN, conventions="transformers")
    assert len(names["translate"](GERMAN)) == len(GERMAN)
    assert names["translate"]([]) == []
    inputs = names["tokenizer"](GERMAN, return_tensors="pt", padding=True)
    source, target = model.tokenizer.source, model.tokenizer.target
    batch = inputs.input_ids.tolist()
    padding = min(source.vocab_size, target.vocab_size) - 1
    ids = [[0 if i == padding else i + (i < padding) for i in row] for row in batch]
    expected = [[*each, source.special_tokens.eos] for each in source.encode_batch(GERMAN)]
    assert [[i for i in row if i] for row in ids] == expected
    outputs = [[1, *target.encode(text)[:4]] for text in ENGLISH]
    theirs = torch.tensor([[padding if i == 0 else i - (i <= padding) for i in row] for row in outputs])
    with torch.inference_mode():
        logits = names["model"](**inputs, decoder_input_ids=theirs).logits.numpy()
    order = np.argsort([padding if i == 0 else i - (i <= padding) for i in range(target.vocab_size)])
    found = np.asarray(model.model(jnp.array(ids), jnp.array(outputs)))[..., order]
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-3)  # they reach 20
    _, info = type(names["model"]).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
