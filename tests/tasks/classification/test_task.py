import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.config import Config, DataConfig, OptimConfig, TokenizerConfig
from transformer_jax.data import BOS, PAD, UNK
from transformer_jax.data.tokenizers import encode_texts
from transformer_jax.decoding.scheduler import padded
from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import make_mesh
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.classification import ClassificationConfig
from transformer_jax.tasks.classification.headlines import CLASSES, Headlines
from transformer_jax.tasks.classification.metrics import classification_scores
from transformer_jax.tasks.classification.task import hide_tokens
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.registry import make_task
from transformer_jax.training import make_evaluator
from transformer_jax.training.setup import train_batches

TRAIN, VALIDATION = 40, 11
"""Numbers that no batch size here divides."""
NAMES = ", ".join(sorted(CLASSES))
SMOOTHING = 0.1
RECORDS = list(Headlines("train")[: TRAIN + VALIDATION])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CSV files of headlines, and further ones of which two texts stand in the validation file."""
    folder = tmp_path_factory.mktemp("headlines")
    parts = {
        "train": RECORDS[:TRAIN],
        "validation": RECORDS[TRAIN:],
        "extra": [*Headlines("train")[100:105], *RECORDS[TRAIN : TRAIN + 2]],
    }
    for name, records in parts.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *records])
    return folder


@pytest.fixture(scope="module")
def make_config(folder):
    def make(model=None, tokenizer=None, own=None, **data):
        files = {f"{split}_file": str(folder / f"{split}.csv") for split in ("train", "validation")}
        options = {"max_length": 24, "row_length": 24, "tokens_per_batch": 192, "bucket_lengths": (7, 9)}
        sizes = {"d_model": 16, "num_heads": 2, "d_ff": 16, "num_encoder_layers": 1, "dropout_rate": 0.3}
        return Config(
            task="classification",
            data=DataConfig(name="text", **{**files, **options, **data}),
            tokenizer=tokenizer or TokenizerConfig(kind="word"),
            model=ModelConfig(**{**sizes, **(model or {})}),
            optim=OptimConfig(label_smoothing=SMOOTHING),
            groups={"classification": own or ClassificationConfig()},
        )

    return make


@pytest.fixture(scope="module")
def task(make_config):
    return make_task(make_config())


@pytest.fixture(scope="module")
def params(task):
    """Larger than those that a training starts from, so that outputs differ."""
    return jax.tree.map(lambda leaf: 2.0 * leaf, task.init_params(jax.random.key(0)))


@pytest.fixture(scope="module")
def log_probs(task, params):
    """Of the classes for the training texts, then the validation texts, each read in a row of its own."""
    tokens = padded([ids.tolist() for ids, _ in task.encode(RECORDS)], len(RECORDS), 24)
    logits = np.asarray(jax.jit(nnx.merge(task.graphdef, params))(tokens)[:, 0], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def labels_of(task, records):
    return np.array([task.classes.index(record.label) for record in records])


def evaluate(task, params, *, final):
    return make_evaluator(task, task.config)(params, final=final)


def batches_of(task):
    return train_batches(task, task.config, make_mesh(task.config.mesh))


def texts_in(batches):
    """How many texts an epoch holds."""
    return sum(int(batch.segments.max(1).sum()) for batch, _ in batches.iterate(epochs=1))


def test_it_is_a_task(task, folder):
    columns = f"{folder / 'train.csv'}: text from text, label from label"
    assert isinstance(task, Task)
    assert task.classes == tuple(sorted(CLASSES))
    assert task.model_config.num_classes == len(CLASSES)
    assert task.model_config.source_vocab_size == task.tokenizer.vocab_size
    assert task.data_name == "text"
    assert task.notes == [f"{TRAIN} training texts, {VALIDATION} validation texts, 4 classes: {NAMES}", columns]
    assert texts_in(batches_of(task)) == TRAIN


def test_examples_are_tokens_and_a_class(task):
    for record, (ids, label) in zip(RECORDS, task.encode(RECORDS), strict=True):
        assert ids.dtype == label.dtype == np.int32
        assert ids.tolist() == [BOS, *task.tokenizer.encode(record.text)]
        assert [task.classes[number] for number in label] == [record.label]


@pytest.mark.parametrize(
    "data",
    [{}, {"row_length": 40, "tokens_per_batch": 400}, {"batching": "bucket"}],
    ids=["packed", "longer rows", "buckets"],
)
def test_loss_is_that_of_each_text_alone_however_batched(make_config, task, params, log_probs, data):
    """The definition of section 5.4, written out: most of the probability on the label, the rest on all classes."""
    wanted = (1 - SMOOTHING) * np.eye(4)[labels_of(task, RECORDS[:TRAIN])] + SMOOTHING / 4
    expected = -(wanted * log_probs[:TRAIN]).sum()
    other = make_task(make_config(**data), task.tokenizer_files)
    loss, sums, shapes = jax.jit(other.loss), {"loss": 0.0, "weight": 0.0}, set()
    for batch, _ in batches_of(other).iterate(epochs=1):
        shapes.add(batch.tokens.shape)
        for name, value in loss(params, batch, None).items():
            sums[name] += float(value)
    assert len(shapes) == (3 if data.get("batching") == "bucket" else 1)
    assert sums["weight"] == TRAIN
    assert sums["loss"] == pytest.approx(expected, rel=1e-5)


def test_rows_are_packed(task):
    batch, _ = next(batches_of(task).iterate())
    assert batch.segments.max() > 1


def test_an_empty_batch_weighs_nothing_and_has_no_gradient(task, params):
    batch, _ = next(batches_of(task).iterate())
    empty = type(batch)(*(jnp.zeros_like(field) for field in batch[:3]), jnp.full_like(batch.labels, -1))

    def loss(params):
        sums = task.loss(params, empty, None)
        return sums["loss"], sums

    (_, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert (float(sums["loss"]), float(sums["weight"])) == (0.0, 0.0)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_dropout_depends_on_the_key_alone(task, params):
    batch, _ = next(batches_of(task).iterate())
    loss = jax.jit(task.loss)
    none, first, again, second = (
        float(loss(params, batch, key)["loss"])
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    assert first == again
    assert len({none, first, second}) == 3


@pytest.fixture(scope="module")
def evaluation(task, params):
    return evaluate(task, params, final=False)


def test_scores_are_those_of_each_validation_text_alone(task, evaluation, log_probs):
    labels, found = labels_of(task, RECORDS[TRAIN:]), log_probs[TRAIN:]
    report = classification_scores(labels, np.exp(found), task.classes)
    assert evaluation.scores == pytest.approx(
        {
            "loss": -found[np.arange(VALIDATION), labels].mean(),
            "accuracy": (found.argmax(axis=1) == labels).mean(),
            "macro_f1": report.macro_f1,
            "expected_calibration_error": report.expected_calibration_error,
        },
        rel=1e-4,
    )
    assert tuple(evaluation.scores) == task.metrics
    assert 0 < evaluation.scores["accuracy"] < 1
    said = [task.classes[best] for best in found.argmax(axis=1)]
    assert evaluation.samples == [(r.text, best, r.label) for r, best in zip(RECORDS[TRAIN:], said, strict=True)]
    assert len(set(said)) > 1


def test_a_hopeless_model_has_a_finite_loss(task, params):
    scores = evaluate(task, jax.tree.map(lambda leaf: 1e4 * leaf, params), final=True).scores
    assert 10 < scores["loss"] < 90


def test_a_damaged_model_is_told(task, params):
    with pytest.raises(UserError, match="probabilities are not numbers"):
        evaluate(task, jax.tree.map(lambda leaf: jnp.nan * leaf, params), final=False)


def test_validation_cut_from_training_data(make_config, task, tmp_path):
    """Texts that stand there twice must not end on both sides."""
    with (tmp_path / "twice.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *RECORDS, *RECORDS[:TRAIN]])
    options = {"train_file": str(tmp_path / "twice.csv"), "validation_file": "", "validation_split": ""}
    cut = make_task(make_config(**options, validation_percent=30.0), task.tokenizer_files)
    held_out = {record.text for record in cut.validation}
    expected = [record for record in [*RECORDS, *RECORDS[:TRAIN]] if record.text in held_out]
    assert cut.validation == expected
    assert 5 < len(expected) < 50
    assert texts_in(batches_of(cut)) == len(RECORDS) + TRAIN - len(expected)
    again = make_task(make_config(**options, validation_percent=30.0), task.tokenizer_files)
    assert again.validation == cut.validation
    for percent in (0.0, 100.0):
        with pytest.raises(UserError, match=r"config\.data\.validation_percent is"):
            make_task(make_config(**options, validation_percent=percent))


def test_extra_training_texts_leave_validation_unseen(make_config, task, folder):
    path = str(folder / "extra.csv")
    more = make_task(make_config(own=ClassificationConfig(extra_train=path)), task.tokenizer_files)
    assert more.notes == [
        f"{TRAIN + 5} training texts, {VALIDATION} validation texts, 4 classes: {NAMES}",
        f"{folder / 'train.csv'}: text from text, label from label",
        f"5 of the training texts are from {path}",
    ]
    assert texts_in(batches_of(more)) == TRAIN + 5


def test_lowercase(make_config):
    lowered = make_task(make_config(lowercase=True))
    assert lowered.settings["lowercase"]
    assert any(record.text != record.text.lower() for record in RECORDS)
    upper = [record._replace(text=record.text.upper()) for record in RECORDS]
    for (ids, _), (expected, _) in zip(lowered.encode(upper), lowered.encode(RECORDS), strict=True):
        assert ids.tolist() == expected.tolist()
    train = [ids for ids, _ in lowered.encode(RECORDS[:TRAIN])]
    assert UNK not in np.concatenate(train), "the tokenizer learned from what it is to read"
    assert lowered.validation == RECORDS[TRAIN:], "samples show texts as they are"


@pytest.mark.parametrize(
    ("model", "data", "longest"),
    [({}, {"max_length": 6}, 6), ({"positions": "learned", "max_positions": 5}, {}, 5)],
    ids=["max_length", "max_positions"],
)
def test_long_texts_are_cut(make_config, task, model, data, longest):
    short = make_task(make_config(model, **data), task.tokenizer_files)
    assert short.settings["max_length"] == longest
    cut = [ids[:longest].tolist() for ids, _ in task.encode(RECORDS)]
    assert [ids.tolist() for ids, _ in short.encode(RECORDS)] == cut
    batches = batches_of(short)
    assert texts_in(batches) == TRAIN
    assert batches.skipped == 0
    assert max(len(ids) for ids, _ in short.validation_examples) == longest
    assert max(batch.positions.max() for batch, _ in batches.iterate(epochs=1)) == longest - 1


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_tokenizer_files_round_trip(make_config, kind):
    config = make_config(tokenizer=TokenizerConfig(kind=kind, vocab_size=90), max_length=100, tokens_per_batch=800)
    trained = make_task(config)
    restored = make_task(config, trained.tokenizer_files)
    assert restored.tokenizer_files == trained.tokenizer_files
    assert restored.model_config == trained.model_config
    batches = (next(batches_of(each).iterate())[0] for each in (trained, restored))
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_settings_make_a_model_that_classifies_alike(task, params, evaluation, tmp_path):
    save(
        tmp_path / "model",
        task="classification",
        model_config=task.model_config,
        params=params,
        tokenizer_files=task.tokenizer_files,
        settings=task.settings,
        scores=evaluation.scores,
    )
    model = load(tmp_path / "model")
    texts = [text for text, _, _ in evaluation.samples]
    assert [found.label for found in model.classify(texts)] == [said for _, said, _ in evaluation.samples]
    assert encode_texts(model.tokenizer, texts, model.settings.max_length) == [
        ids.tolist() for ids, _ in task.validation_examples
    ]


def test_init_is_a_function_of_the_key(task):
    first, again, other = (task.init_params(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not jnp.array_equal(first["head"]["kernel"], other["head"]["kernel"])


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("model", {"pooling": "max"}, r"config\.model\.pooling is 'max', but must be mean or first"),
        ("model", {"num_heads": 3}, r"config\.model\.num_heads is 3"),
        ("data", {"batching": "none"}, r"config\.data\.batching is 'none'"),
        ("data", {"tokens_per_batch": 9}, r"config\.data\.tokens_per_batch is 9"),
        ("data", {"train_file": ""}, r"config\.data\.train_file is empty"),
        ("data", {"validation_file": ""}, r"config\.data\.validation_file is empty"),
        ("data", {"name": "none"}, "none"),
        ("classification", {"extra_train": "missing.csv"}, r"missing\.csv"),
        ("tokenizer", {"kind": "none"}, r"config\.tokenizer\.kind is 'none'"),
    ],
)
def test_mistakes_are_told(make_config, group, values, message):
    config = make_config()

    def made():
        changed = {group: dataclasses.replace(getattr(config, group), **values)}
        changed = changed if group in vars(config) else {"groups": changed}
        return batches_of(make_task(dataclasses.replace(config, **changed)))

    with pytest.raises(UserError, match=message):
        made()


def test_hidden_tokens_are_the_share_asked_for_and_never_beginnings_or_padding():
    rate, rows, length = 0.2, 64, 128
    tokens = np.full((rows, length), 7, np.int32)
    tokens[:, 100:] = PAD
    positions = np.broadcast_to(np.arange(length) % 10, tokens.shape)
    seen, places, are_hidden = map(
        np.asarray, hide_tokens(jnp.array(tokens), jnp.array(positions), rate, jax.random.key(0))
    )
    expected = tokens.copy()
    for row in range(rows):
        expected[row, places[row][are_hidden[row] == 1]] = UNK
    np.testing.assert_array_equal(seen, expected)
    changed = seen != tokens
    assert changed.sum() == are_hidden.sum()
    assert not changed[:, 100:].any()
    assert not changed[positions == 0].any()
    candidates = 90 * rows
    # Four standard deviations of the share.
    assert abs(changed.sum() / candidates - rate) < 4 * (rate * (1 - rate) / candidates) ** 0.5
    again, *_ = hide_tokens(jnp.array(tokens), jnp.array(positions), rate, jax.random.key(1))
    assert (np.asarray(again) != seen).any()


@pytest.mark.parametrize(("rate", "key"), [(0.0, jax.random.key(0)), (0.2, None)])
def test_nothing_is_hidden_unless_asked_for(rate, key):
    tokens = np.arange(4, 24, dtype=np.int32).reshape(2, 10)
    seen, places, are_hidden = hide_tokens(jnp.array(tokens), jnp.arange(20).reshape(2, 10), rate, key)
    np.testing.assert_array_equal(seen, tokens)
    assert places.shape == are_hidden.shape == (2, 0)


def test_the_loss_of_hidden_tokens_is_their_mean_cross_entropy(make_config):
    plain, guessing = (
        make_task(make_config({"dropout_rate": 0.0}, own=ClassificationConfig(mask_rate=0.3, mask_loss=weight)))
        for weight in (0.0, 0.5)
    )
    params = plain.init_params(jax.random.key(0))
    batch, _ = next(batches_of(plain).iterate())
    key = jax.random.key(3)
    without, with_guesses = (jax.jit(task.loss)(params, batch, key) for task in (plain, guessing))
    assert with_guesses["weight"] == without["weight"]

    mask_key, _, _ = jax.random.split(key, 3)
    seen = np.asarray(hide_tokens(*map(jnp.array, (batch.tokens, batch.positions)), 0.3, mask_key)[0])
    model = nnx.merge(plain.graphdef, params)
    x = np.asarray(model.encode(*map(jnp.array, (seen, batch.segments, batch.positions))), np.float64)
    logits = x @ np.asarray(params["embedding"]["table"], np.float64).T
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    hidden = seen != batch.tokens
    guesses = -np.take_along_axis(log_probs, batch.tokens[..., None], -1)[..., 0][hidden].mean()
    assert hidden.sum() > 10
    added = float(with_guesses["loss"] - without["loss"])
    np.testing.assert_allclose(added, 0.5 * float(without["weight"]) * guesses, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
        ({"mask_rate": -0.1}, "mask_rate"),
        ({"mask_loss": 0.1}, "mask_loss is 0.1"),
    ],
)
def test_masks_that_make_no_sense_are_refused(make_config, options, named):
    with pytest.raises(UserError, match=named):
        make_task(make_config(own=ClassificationConfig(**options)))
