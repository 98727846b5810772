"""Models as StableHLO, and the reader that needs nothing of this package."""

import ast
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.interop.marian_folders import GERMAN, make_folder
from tests.interop.readmes import code_of, names_of
from tests.tasks.toys import CLASSES, write_classifier, write_couplet_writer
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.interop import stablehlo_reader
from transformer_jax.interop.marian import import_marian
from transformer_jax.interop.stablehlo_export import export_stablehlo
from transformer_jax.interop.stablehlo_reader import ExportError
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load, save

LINES = ["abc", "cab ab", "Bad", "decade", "e", "ABBA"]
SIZES = ("num_decoder_layers", "num_heads", "head_width")
# Of logits up to 12.6; with JAX 0.7, which sums in another order, 1.4e-5 was seen.
TOLERANCE = 1e-5 if jax.__version_info__ >= (0, 8) else 2e-5


def write_model(path, **options):
    tokenizer = train_pair(options.pop("kind", "char"), ["abcde ABCDE", *LINES], [], vocab_size=40, joint=True)
    sizes = {"d_model": 16, "num_heads": 2, "d_ff": 24, "num_encoder_layers": 1, "num_decoder_layers": 2}
    vocabulary = {f"{side}_vocab_size": tokenizer.source.vocab_size for side in ("source", "target")}
    config = ModelConfig(**sizes | vocabulary | options)
    _, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: 2 * x, params)
    files, settings = tokenizer.files(), {"decoding": {"max_extra_tokens": 3}}
    save(
        path,
        task="translation",
        model_config=config,
        params=params,
        tokenizer_files=files,
        settings=settings,
        scores={},
    )
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, and what it is exported to."""
    folder = tmp_path_factory.mktemp("stablehlo")
    export_stablehlo(write_model(folder / "model", norm_first=True), folder / "out")
    return folder / "model", folder / "out"


@pytest.mark.parametrize(("batch", "beams", "length", "slots"), [(1, 1, 3, 4), (3, 2, 5, 6)])
def test_logits_are_the_models_whatever_the_sizes(folders, batch, beams, length, slots):
    model, program = load(folders[0]).model, stablehlo_reader.load(folders[1])
    rng = np.random.default_rng(batch)
    source = rng.integers(4, 14, (batch, length)).astype(np.int32)
    source[:, -1] = 2
    source[0, 1:] = [2, *[0] * (length - 2)]
    target = rng.integers(1, 14, (batch, beams, slots)).astype(np.int32)
    # Each target as a whole, without a cache.
    expected = jax.jit(jax.vmap(model, (None, 1), 1))(jnp.asarray(source), jnp.asarray(target))
    memory, cache = program.encode(source), program.empty_cache(batch, beams, slots)
    for step in range(slots):
        logits, cache = program.step(target[:, :, step], cache, memory)
        np.testing.assert_allclose(logits, expected[:, :, step], atol=TOLERANCE)
    assert float(jnp.ptp(logits)) > 1


def test_greedy_search_is_ours(folders):
    model, program = load(folders[0]), stablehlo_reader.load(folders[1])
    tokenizer = model.tokenizer.source
    outputs = program.greedy([[*tokenizer.encode(line), 2] for line in LINES], max_length=9)
    expected = model.translate(LINES, beam_size=1, max_length=10, max_extra_tokens=99)
    assert [tokenizer.decode(output) for output in outputs] == expected
    assert len(set(expected)) > 2


def run_readme(folder, monkeypatch):
    """What the code in the README defines, with the folder's own reader."""
    assert "transformer_jax" not in code_of(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "stablehlo_reader", raising=False)
    names = names_of(folder)
    assert Path(sys.modules["stablehlo_reader"].__file__).parent == folder
    return names


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_the_readme_translates(tmp_path, monkeypatch, kind):
    model = load(write_model(tmp_path / "model", kind=kind, num_decoder_layers=1))
    export_stablehlo(model, tmp_path / "out")
    texts = [*LINES, "? unknown"]
    translate = run_readme(tmp_path / "out", monkeypatch)["translate"]
    found = translate(texts)
    assert translate([]) == []
    longest = max(len(model.tokenizer.source.encode(text)) for text in texts) + 4
    assert found == model.translate(texts, beam_size=1, max_length=longest, max_extra_tokens=99)
    assert len(set(found)) > 1


def test_a_model_of_marian(tmp_path, monkeypatch):
    import_marian(make_folder(tmp_path / "marian", temper=20.0, layers=(1, 1)), tmp_path / "model")
    export_stablehlo(tmp_path / "model", tmp_path / "out")
    names, model = run_readme(tmp_path / "out", monkeypatch), load(tmp_path / "model")
    names["model"].greedy = lambda sources, max_length: sources
    texts = [*GERMAN, f">>fra<< {GERMAN[0]}"]
    found = names["translate"](texts)
    assert found == [model.tokenizer.target.decode(model.tokenizer.source.encode(text)) for text in texts]


def test_a_classifier(tmp_path, monkeypatch):
    model = load(write_classifier(tmp_path / "model", max_length=6))
    export_stablehlo(tmp_path / "model", tmp_path / "out")
    names = run_readme(tmp_path / "out", monkeypatch)
    texts = ["abc", "decade cab", "e"]
    assert names["classify"]([]) == []
    assert names["classify"](texts) == [found.label for found in model.classify(texts)]
    tokens = [[1, *model.tokenizer.encode(text)][:6] for text in texts]
    np.testing.assert_allclose(names["model"].probabilities(tokens), model.probabilities(texts), atol=1e-5)
    assert names["model"].signature["classes"] == list(CLASSES)
    with pytest.raises(names["load"].__globals__["ExportError"], match="has 7 tokens, but the limit of the model is 6"):
        names["model"].probabilities([[1] * 7])


def test_a_writer_of_couplets(tmp_path):
    model = load(write_couplet_writer(tmp_path / "model"))
    export_stablehlo(tmp_path / "model", tmp_path / "out")
    program = stablehlo_reader.load(tmp_path / "out")
    assert program.signature["sizes"]["target_vocab_size"] == model.tokenizer.target.vocab_size
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert '"".join(text.split())' in readme
    assert "may break them" in readme
    assert "several tokens" not in readme


def test_what_is_forbidden_in_part_is_told(tmp_path):
    model = load(write_model(tmp_path / "model"))
    model.settings = replace(model.settings, bad_words=((3,), (4, 5)))
    export_stablehlo(model, tmp_path / "out")
    assert stablehlo_reader.load(tmp_path / "out").signature["never"] == [0, 3]
    assert "Sequences of several tokens" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_positions_end_where_the_models_do(tmp_path):
    export_stablehlo(write_model(tmp_path / "model", positions="learned", max_positions=8), tmp_path / "out")
    program = stablehlo_reader.load(tmp_path / "out")
    with pytest.raises(ExportError, match="A source has 9 tokens, but the limit of the model is 8"):
        program.encode(np.ones((1, 9), np.int32))
    with pytest.raises(ExportError, match="An output has 9 tokens"):
        program.empty_cache(1, 1, 9)


def test_the_reader_imports_nothing_of_ours():
    tree = ast.parse(Path(stablehlo_reader.__file__).read_text("utf-8"))
    roots = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots |= {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert roots - sys.stdlib_module_names == {"jax", "numpy"}


def damage(folder, name, change):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))


def altered(**fields):
    return lambda content: json.dumps(json.loads(content) | fields).encode()


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("step.stablehlo", lambda content: content[:-100], "step.stablehlo is truncated or damaged"),
        ("encoder.stablehlo", lambda content: b"x" + content[1:], "encoder.stablehlo is truncated or damaged"),
        ("signature.json", lambda content: content[:-9], "signature.json is not valid JSON"),
        ("signature.json", lambda content: b"\xff" + content, "signature.json is not valid JSON"),
        ("signature.json", lambda content: b"[]", "does not describe an export"),
        ("signature.json", altered(format_version=1), "format_version 1, but this reader reads 3"),
        ("signature.json", lambda content: b"[" * 100_000, "signature.json is not valid JSON"),
        ("signature.json", altered(kind="diffusion"), "signature.json is damaged"),
        ("signature.json", altered(kind=[]), "signature.json is damaged"),
        ("signature.json", altered(sizes={}), "signature.json is damaged"),
        (
            "signature.json",
            altered(sizes=dict.fromkeys(SIZES, 9)),
            "a program without the sizes of signature.json",
        ),
        ("signature.json", altered(markers={"start": 1, "end": "2"}), "signature.json is damaged"),
        ("signature.json", altered(never=0), "signature.json is damaged"),
        ("signature.json", altered(dtype=["float32"]), "signature.json is damaged"),
        ("signature.json", altered(max_source_length="9"), "signature.json is damaged"),
        ("signature.json", altered(programs={}), "signature.json is damaged"),
        ("signature.json", altered(programs={"encoder": 1, "step": {}}), "signature.json is damaged"),
    ],
)
def test_damage_is_told(folders, tmp_path, name, change, expected):
    for path in folders[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path, name, change)
    with pytest.raises(ExportError, match=re.escape(expected)):
        stablehlo_reader.load(tmp_path)


def test_missing_files_and_strange_programs(folders, tmp_path):
    with pytest.raises(ExportError, match=r"signature.json cannot be read \(No such file"):
        stablehlo_reader.load(tmp_path)
    signature = json.loads((folders[1] / "signature.json").read_text("utf-8"))
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in ("encoder", "step"):
        signature["programs"][name]["sha256"] = nothing
        (tmp_path / f"{name}.stablehlo").write_bytes(b"")
    (tmp_path / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(ExportError, match=r"cannot read .*encoder.stablehlo"):
        stablehlo_reader.load(tmp_path)


def test_what_cannot_be_written(folders, tmp_path):
    with pytest.raises(UserError, match="out exists"):
        export_stablehlo("no model is looked at", folders[1])
    with pytest.raises(UserError, match="is not a folder"):
        export_stablehlo(tmp_path / "nowhere", tmp_path / "out")
    assert not any(tmp_path.iterdir())
