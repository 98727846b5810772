import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from flax import nnx

from transformer_jax.config import Config, DataConfig, DecodingConfig, OptimConfig, TokenizerConfig
from transformer_jax.data import BOS, EOS, PAD
from transformer_jax.decoding.generator import Hypothesis
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.losses import smoothed_cross_entropy
from transformer_jax.sharding import make_mesh
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.registry import make_task
from transformer_jax.tasks.seq2seq_task import MAX_SOURCE_LENGTH
from transformer_jax.tasks.translation.sources import Numerals
from transformer_jax.training import make_evaluator
from transformer_jax.training.setup import train_batches

VALIDATION = 11
"""A number that no batch size here divides."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text files of number words, the training ones with blank lines among them."""
    folder = tmp_path_factory.mktemp("text")
    pairs = {
        "train": [*Numerals("de", "en", "train")[:40], ("", "blank"), ("leer", " \t"), ("", "")],
        # Up to 99 or so: short ones compile to few padded lengths.
        "validation": [pair for pair in Numerals("de", "en", "train")[40:400] if max(map(len, pair)) < 16][:VALIDATION],
    }
    for split, of_split in pairs.items():
        for number, side in enumerate(("source", "target")):
            text = "".join(f"{pair[number]}\n" for pair in of_split)
            (folder / f"{split}.{side}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make_config(folder):
    def make(tokenizer=None, **data):
        files = {f"{split}_{side}": str(folder / f"{split}.{side}") for split, side in PLACES}
        options = {"max_length": 24, "row_length": 24, "tokens_per_batch": 192, "bucket_lengths": (8, 16)}
        return Config(
            data=DataConfig(name="text", **{**files, **options, **data}),
            tokenizer=tokenizer or TokenizerConfig(kind="char"),
            model=ModelConfig(
                d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.3
            ),
            optim=OptimConfig(label_smoothing=0.1),
            decoding=DecodingConfig(beam_size=3, alpha=0.3, max_extra_tokens=2, batch_size=16),
        )

    return make


PLACES = [(split, side) for split in ("train", "validation") for side in ("source", "target")]


@pytest.fixture(scope="module")
def task(make_config):
    return make_task(make_config())


@pytest.fixture(scope="module")
def params(task):
    """Larger than those that a training starts from, so that outputs differ."""
    return jax.tree.map(lambda leaf: 2.0 * leaf, task.init_params(jax.random.key(0)))


@pytest.fixture(scope="module")
def evaluation(task, params):
    return evaluate(task, params, final=False)


def evaluate(task, params, *, final):
    return make_evaluator(task, task.config)(params, final=final)


def batches_of(task):
    return train_batches(task, task.config, make_mesh(task.config.mesh))


def loss_by_hand(task, params, pairs):
    """The sum over sentence pairs, each read alone, and the number of tokens."""
    model = nnx.merge(task.graphdef, params)
    call = jax.jit(lambda source, target: model(source, target))
    total, count = 0.0, 0
    for source, target in task.encode(list(pairs)):
        padded = np.zeros((2, 1, 32), np.int32)
        padded[0, 0, : len(source)], padded[1, 0, : len(target)] = source, [BOS, *target[:-1]]
        logits = np.asarray(call(*padded), np.float64)[0, : len(target)]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= log_probs[range(len(target)), target].sum()
        count += len(target)
    return total, count


def test_it_is_a_task(task):
    assert isinstance(task, Task)
    with pytest.raises(UserError, match=r"config\.task is 'none', but must be one of translation"):
        make_task(Config(task="none"))


def test_examples_end_with_the_end_of_sentence(task):
    pairs = [("eins", "one"), ("", "two"), ("zwei", "")]
    for (source, target), example in zip(pairs, task.encode(pairs), strict=True):
        for text, ids, tokenizer in zip(
            (source, target), example, (task.tokenizer.source, task.tokenizer.target), strict=True
        ):
            assert ids.dtype == np.int32
            assert ids.tolist() == [*tokenizer.encode(text), EOS]
            assert tokenizer.decode(ids.tolist()) == text


def test_blank_training_pairs_are_left_out_and_told(task):
    assert task.notes == [
        f"40 training pairs, {VALIDATION} validation pairs",
        "left out 3 training pairs with a blank side",
    ]
    batches = batches_of(task)
    seen = sum(int(batch.source_segments.max(1).sum()) for batch, _ in batches.iterate(epochs=1))
    assert seen + batches.skipped == 40


def test_a_part_of_the_training_pairs_is_held_out(tmp_path):
    """Of one TSV file; pairs with equal sources stay on one side."""
    pairs = [(f"a{number % 50}", f"b{number}") for number in range(100)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\tx\n" for source, target in pairs))
    held_out = DataConfig(
        name="text", train_file=str(tmp_path / "pairs.tsv"), validation_split="", validation_percent=20.0
    )
    task = make_task(Config(data=held_out, tokenizer=TokenizerConfig(kind="char"), model=ModelConfig(d_model=16)))
    assert sorted([*task.train, *task.validation]) == sorted(pairs)
    assert 0 < len(task.validation) < 50
    assert not {source for source, _ in task.train} & {source for source, _ in task.validation}
    assert task.notes[-1] == "20 % of the sources are held out for validation"


def test_no_training_pairs(make_config, tmp_path):
    (tmp_path / "blank").write_text("\n \n")
    blank = str(tmp_path / "blank")
    with pytest.raises(UserError, match="training data has no sentence pairs"):
        make_task(make_config(train_source=blank, train_target=blank))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_smoothed_cross_entropy_of_all_logits(task, params, smoothing):
    batch = jax.tree.map(jnp.asarray, next(batches_of(task).iterate())[0])
    assert batch.source_segments.max() > 1, "rows are packed"
    model = nnx.merge(task.graphdef, params)
    logits = model(
        batch.source,
        batch.target,
        source_segments=batch.source_segments,
        target_segments=batch.target_segments,
        source_positions=batch.source_positions,
        target_positions=batch.target_positions,
    )
    real = batch.target_segments != 0
    expected = smoothed_cross_entropy(logits, batch.labels, smoothing)[real].sum()
    sums = task._loss(params, batch, None, smoothing=smoothing)
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
    assert float(sums["weight"]) == real.sum()
    if smoothing == task.config.optim.label_smoothing:
        np.testing.assert_allclose(task.loss(params, batch, None)["loss"], expected, rtol=1e-5)


def test_dropout_depends_on_the_key_alone(task, params):
    batch, _ = next(batches_of(task).iterate())
    loss = jax.jit(task.loss)
    none, first, again, second = (
        float(loss(params, batch, key)["loss"])
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    assert first == again
    assert len({none, first, second}) == 3


def test_validation_loss_counts_every_pair_once(task, params, evaluation):
    total, count = loss_by_hand(task, params, task.validation)
    assert evaluation.scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert evaluation.scores["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        {"batching": "bucket"},
        {"batching": "bucket", "bucket_lengths": (13,)},
        {"row_length": 40, "tokens_per_batch": 400},
    ],
    ids=["bucket", "odd buckets", "longer rows"],
)
def test_validation_loss_does_not_depend_on_batches(make_config, task, params, evaluation, data):
    other = make_task(make_config(**data), task.tokenizer_files)
    sums = make_evaluator(other, other.config).loss_sums(params)
    assert sums["loss"] / sums["weight"] == pytest.approx(evaluation.scores["loss"], rel=1e-5)


def test_validation_outputs(task, params, evaluation):
    sources, references = zip(*task.validation, strict=True)
    ids = [[*task.tokenizer.source.encode(source), EOS] for source in sources]
    options = SearchOptions(beam_size=1, alpha=0.3, max_extra_tokens=2)
    outputs = [task.tokenizer.target.decode(best.tokens) for [best] in task.generator.generate(params, ids, options)]
    assert evaluation.samples == list(zip(sources, outputs, references, strict=True))
    assert len(evaluation.samples) == VALIDATION
    assert len(set(outputs)) > 2
    assert evaluation.scores["bleu"] == sacrebleu.corpus_bleu(outputs, [references]).score
    assert evaluation.scores["chrf"] == sacrebleu.corpus_chrf(outputs, [references]).score
    assert evaluation.scores["exact_match"] == np.mean([o == r for o, r in zip(outputs, references, strict=True)])
    assert set(task.metrics) == {name for name, value in evaluation.scores.items() if isinstance(value, float)}


def test_the_final_evaluation_searches_as_configured(task, params, evaluation):
    final = evaluate(task, params, final=True)
    sources, _ = zip(*task.validation, strict=True)
    ids = [[*task.tokenizer.source.encode(source), EOS] for source in sources]
    options = SearchOptions(beam_size=3, alpha=0.3, max_extra_tokens=2)
    found = task.generator.generate(params, ids, options)
    outputs = [task.tokenizer.target.decode(best.tokens) for [best] in found]
    assert [output for _, output, _ in final.samples] == outputs
    assert outputs != [output for _, output, _ in evaluation.samples]
    assert final.scores["loss"] == evaluation.scores["loss"]


def test_a_hopeless_model_has_a_perplexity(task, params):
    """Beyond what a float holds, it is infinite."""
    huge = jax.tree.map(lambda leaf: 1000.0 * leaf, params)
    scores = evaluate(task, huge, final=False).scores
    assert scores["loss"] > 710.0
    assert scores["perplexity"] == np.inf


@pytest.mark.parametrize(
    "tokenizer",
    [TokenizerConfig(kind="bpe", vocab_size=50), TokenizerConfig(kind="word", joint=False)],
    ids=["joint", "two"],
)
def test_tokenizer_files_round_trip(make_config, tokenizer):
    config = make_config(tokenizer)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, tie_embeddings="output"))
    trained = make_task(config)
    restored = make_task(config, trained.tokenizer_files)
    assert restored.tokenizer_files == trained.tokenizer_files
    assert restored.model_config == trained.model_config
    sizes = trained.model_config.source_vocab_size, trained.model_config.target_vocab_size
    assert sizes == (trained.tokenizer.source.vocab_size, trained.tokenizer.target.vocab_size)
    assert (sizes[0] == sizes[1]) == tokenizer.joint
    batches = (next(batches_of(each).iterate())[0] for each in (trained, restored))
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_settings_make_a_model_that_translates_alike(task, params, tmp_path):
    save(
        tmp_path / "model",
        task="translation",
        model_config=task.model_config,
        params=params,
        tokenizer_files=task.tokenizer_files,
        settings=task.settings,
        scores={},
    )
    model = load(tmp_path / "model")
    decoding = model.settings.decoding
    assert (decoding.beam_size, decoding.alpha, decoding.max_extra_tokens) == (3, 0.3, 2)
    assert (model.settings.source_language, model.settings.target_language) == ("de", "en")
    sources, _ = zip(*task.validation, strict=True)
    final = evaluate(task, params, final=True)
    assert model.translate(list(sources), batch_size=16) == [output for _, output, _ in final.samples]


def test_init_is_a_function_of_the_key(task):
    first, again, other = (task.init_params(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not jnp.array_equal(jax.tree.leaves(first)[-1], jax.tree.leaves(other)[-1])


@pytest.fixture
def cased(tmp_path, folder):
    """The same text with capitals, and the options that name its files."""
    for split, side in PLACES:
        text = (folder / f"{split}.{side}").read_text(encoding="utf-8")
        (tmp_path / f"{split}.{side}").write_text(text.title(), encoding="utf-8")
    return {f"{split}_{side}": str(tmp_path / f"{split}.{side}") for split, side in PLACES}


def test_lowercase_is_for_the_model_and_not_for_references(make_config, cased, monkeypatch):
    task = make_task(make_config(lowercase=True, **cased))
    assert all(source != source.lower() and target != target.lower() for source, target in task.validation)
    for batches in (batches_of(task), make_evaluator(task, task.config).batches):
        batch, _ = next(batches.iterate())
        sides = (task.tokenizer.source, batch.source), (task.tokenizer.target, batch.labels)
        for tokenizer, rows in sides:
            text = tokenizer.decode([token for token in rows.ravel().tolist() if token not in (PAD, EOS)])
            assert len(text) > 50, "not unknown tokens alone"
            assert text == text.lower()
    lowered = [(source.lower(), target.lower()) for source, target in task.validation]
    for seen, expected in zip(task.validation_examples, task.encode(lowered), strict=True):
        jax.tree.map(np.testing.assert_array_equal, seen, expected)

    asked = []

    def perfect(params, sources, options):
        """What a model without a fault gives: the target as it was taught, lower-cased."""
        asked.extend(sources)
        return [[Hypothesis(target[:-1].tolist(), 0.0, 0.0)] for _, target in task.validation_examples]

    monkeypatch.setattr(task.generator, "generate", perfect)
    evaluation = evaluate(task, task.init_params(jax.random.key(0)), final=False)
    assert asked == [[*task.tokenizer.source.encode(source), EOS] for source, _ in lowered]
    assert [(source, reference) for source, _, reference in evaluation.samples] == task.validation
    assert [output for _, output, _ in evaluation.samples] == [target for _, target in lowered]
    assert evaluation.scores["exact_match"] == 0.0
    assert evaluation.scores["chrf"] < 100.0


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
def test_a_validation_sentence_too_long_is_named(make_config, tmp_path, side):
    texts = [["eins", "zwei"], ["one", "two"]]
    # The end of sentence is one token more.
    for length, fits in ((MAX_SOURCE_LENGTH - 1, True), (MAX_SOURCE_LENGTH, False)):
        texts[side][1] = "e" * length
        files = {}
        for name, lines in zip(("source", "target"), texts, strict=True):
            (tmp_path / name).write_text("\n".join(lines) + "\n")
            files[f"validation_{name}"] = str(tmp_path / name)
        if fits:
            make_task(make_config(**files))
        else:
            with pytest.raises(UserError, match=r"Validation pair 2 has 1,025 tokens, but the limit is 1,024"):
                make_task(make_config(**files))


def test_learned_positions_must_reach_as_far_as_the_data(make_config):
    config = make_config()

    def with_positions(count):
        return dataclasses.replace(
            config, model=dataclasses.replace(config.model, positions="learned", max_positions=count)
        )

    assert make_task(with_positions(24)).generator.max_positions == 24
    message = r"config\.data\.max_length is 24, but config\.model\.max_positions only 23"
    with pytest.raises(UserError, match=message):
        make_task(with_positions(23))
    with pytest.raises(UserError, match=r"Validation pair \d+ has \d+ tokens, but the limit is 5"):
        make_task(with_positions(5))
