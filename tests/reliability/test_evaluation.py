"""Promise: an evaluation does not depend on batch size, order or padding, and every example counts once."""

import jax
import pytest

from transformer_jax.config import Config, DataConfig, DecodingConfig, TokenizerConfig
from transformer_jax.nn import ModelConfig
from transformer_jax.tasks.registry import make_task
from transformer_jax.tasks.translation.sources import Numerals
from transformer_jax.training import make_evaluator

PAIRS = 11
"""A number that no batch size here divides."""
LAYOUTS = {
    "small batches": ({"tokens_per_batch": 192}, {"batch_size": 1}),
    "one pair a row": ({"batching": "bucket"}, {"batch_size": 4}),
    "long rows": ({"row_length": 64}, {"batch_size": 64}),
}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """The evaluation, and the sums of the loss, of one model on given pairs in a given layout."""
    folder = tmp_path_factory.mktemp("text")

    def write(name, pairs):
        for number, side in enumerate(("source", "target")):
            (folder / f"{name}.{side}").write_text("".join(f"{pair[number]}\n" for pair in pairs), encoding="utf-8")
        return {f"{name}_{side}": str(folder / f"{name}.{side}") for side in ("source", "target")}

    train = write("train", Numerals("de", "en", "train")[:40])

    def evaluate(pairs, data=None, decoding=None):
        data = {"max_length": 24, "row_length": 24, "tokens_per_batch": 512, "bucket_lengths": (16,)} | (data or {})
        config = Config(
            data=DataConfig(name="text", **train, **write("validation", pairs), **data),
            tokenizer=TokenizerConfig(kind="char"),
            model=ModelConfig(d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1),
            decoding=DecodingConfig(beam_size=2, max_extra_tokens=2, **(decoding or {})),
        )
        task = make_task(config, None)
        evaluator, params = make_evaluator(task, config), task.init_params(jax.random.key(0))
        return evaluator(params, final=True), evaluator.loss_sums(params), task

    return evaluate


@pytest.fixture(scope="module")
def pairs():
    return [pair for pair in Numerals("de", "en", "train")[40:400] if max(map(len, pair)) < 16][:PAIRS]


def assert_same(found, expected):
    near = {
        name: value if isinstance(value, str) else pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    assert found == near


@pytest.fixture(scope="module")
def whole(evaluate, pairs):
    return evaluate(pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_and_padding(evaluate, pairs, whole, layout):
    data, decoding = LAYOUTS[layout]
    evaluation, sums, _ = evaluate(pairs, data, decoding)
    assert_same(sums, whole[1])
    assert_same(evaluation.scores, whole[0].scores)
    assert evaluation.samples == whole[0].samples


def test_order(evaluate, pairs, whole):
    evaluation, sums, _ = evaluate(pairs[::-1])
    assert_same(sums, whole[1])
    assert_same(evaluation.scores, whole[0].scores)
    assert evaluation.samples == whole[0].samples[::-1]


def test_every_example_counts_once(evaluate, pairs, whole):
    evaluation, sums, task = whole
    assert sums["weight"] == sum(len(target) for _, target in task.validation_examples)
    assert [sample[0] for sample in evaluation.samples] == [source for source, _ in pairs]
    parts = [evaluate(part)[1] for part in (pairs[:4], pairs[4:])]
    assert_same({name: sum(part[name] for part in parts) for name in sums}, sums)
    assert_same(evaluate(pairs + pairs)[1], {name: 2 * value for name, value in sums.items()})
