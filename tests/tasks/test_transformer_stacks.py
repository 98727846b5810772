import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tasks.toys import tiny_config, tiny_tokenizer, write_bundle
from transformer_jax.nn import Transformer, split
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load, save, task_of
from transformer_jax.tasks.seq2seq_model import TransformerStacks


@pytest.fixture(scope="module")
def stacks():
    config = dataclasses.replace(tiny_config(tiny_tokenizer()), source_vocab_size=0, target_vocab_size=0)
    return config, Transformer(config, rngs=nnx.Rngs(3))


@pytest.fixture
def folder(tmp_path, stacks):
    save(
        tmp_path / "model",
        task="transformer",
        model_config=stacks[0],
        params=split(stacks[1])[1],
        tokenizer_files={},
        settings={},
        scores={},
    )
    return tmp_path / "model"


def edit(folder, change):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(values)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def test_what_was_saved_is_loaded_as_a_module(folder, stacks):
    config, module = stacks
    loaded = load(folder)
    assert type(loaded) is TransformerStacks
    assert (loaded.model_config, loaded.tokenizer) == (config, None)
    assert task_of(folder) == "transformer"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    source, target = (jax.random.normal(jax.random.key(length), (2, length, config.d_model)) for length in (4, 3))
    np.testing.assert_array_equal(loaded.model(source, target), module(source, target))


def test_the_card_speaks_of_no_vocabulary(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# A Transformer without embeddings\n" in card
    assert "| layers | 1 + 1 |" in card
    assert "tokens" not in card


def test_a_tokenizer_too_many_or_too_few_is_refused(folder, tmp_path):
    edit(folder, lambda values: values["sha256"].update({"characters.txt": "0"}))
    with pytest.raises(UserError, match=r"sha256 must name model\.safetensors and, if there is a vocabulary"):
        load(folder)
    translator = write_bundle(tmp_path / "translator")
    edit(translator, lambda values: values["sha256"].pop("characters.txt"))
    with pytest.raises(UserError, match=r"sha256 must name model\.safetensors and, if there is a vocabulary"):
        load(translator)
    edit(translator, lambda values: values["model"].update(source_vocab_size=0))
    with pytest.raises(UserError, match=r"source_vocab_size is 0"):
        load(translator)


def test_the_task_of_what_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        task_of(tmp_path / "nowhere")
