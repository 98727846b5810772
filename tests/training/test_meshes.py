"""Training over any mesh of devices gives what one device gives: the loop's own state, batches and step."""

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from configs import classification_sample, numerals
from transformer_jax.config import Config, from_config_dict
from transformer_jax.nn import unstack_layers
from transformer_jax.sharding import MeshConfig, shard_batch
from transformer_jax.tasks.classification import sources as texts
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.training.loop import first_state
from transformer_jax.training.setup import Run, setup
from transformer_jax.training.step import norms_of

DEVICES = jax.devices()
STEPS = 20
ONE = (1, 1, 1)
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "fsdp and tensor": (1, 4, 2), "all": (2, 2, 2)}


@pytest.fixture(autouse=True, scope="module")
def few_records() -> Iterator[None]:
    load_pairs, load_texts, sizes = translation.load_pairs, texts.load_texts, {"train": 300, "validation": 20}

    def few_texts(config, split, *report):
        found, classes = load_texts(config, split, *report)
        return found[: sizes[split]], classes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "load_pairs", lambda config, split: load_pairs(config, split)[: sizes[split]])
        patch.setattr(texts, "load_texts", few_texts)
        yield


def translating(**model) -> Config:
    return shrunk(numerals.get_config(), model)


def everything() -> Config:
    """All at once: the layers scanned and rematerialised, gradients accumulated and clipped, parameters averaged."""
    config = translating(scan_layers=True, remat="dots", positions="learned", output_bias=True, norm_first=True)
    optim = dataclasses.replace(config.optim, accumulate_steps=2, clip_norm=1.0)
    return dataclasses.replace(config, optim=optim, training=dataclasses.replace(config.training, ema_decay=0.9))


def classifying() -> Config:
    config = classification_sample.get_config()
    config.classification.update(mask_rate=0.2, mask_loss=0.5)
    return shrunk(config, {})


def shrunk(config, model) -> Config:
    sizes = {"d_model": 16, "num_heads": 4, "d_ff": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
    config.model.update(sizes | {"dropout_rate": 0.1} | model)
    config.tokenizer.vocab_size = 80
    # 12 rows of content: the meshes of eight add blank ones.
    config.data.update(max_length=32, row_length=32, tokens_per_batch=12 * 32)
    config.optim.update(warmup_steps=10)
    return from_config_dict(config)


def prepared(config, sizes, tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(jax, "devices", lambda: DEVICES[: np.prod(sizes)])
    return setup(dataclasses.replace(config, mesh=MeshConfig(*sizes)), tmp_path, started=time.monotonic())


def curve(config, sizes, tmp_path, monkeypatch) -> tuple[list[float], Run]:
    """The loss of every step, per token, and the norm of its gradient."""
    run = prepared(config, sizes, tmp_path, monkeypatch)
    state, batches, losses = first_state(run), run.batches.iterate(), []
    for _ in range(STEPS):
        batch, _ = next(batches)
        state, sums = run.train_step(state, shard_batch(batch, run.mesh))
        losses.append(float(sums["loss"] / sums["weight"]))
    return losses, run


CASES = {"translating": translating, "everything": everything, "classifying": classifying}


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """The curve of a case, computed once."""
    found: dict[str, list[float]] = {}

    def curve_of(case):
        if case not in found:
            with pytest.MonkeyPatch.context() as patch:
                found[case], _ = curve(CASES[case](), ONE, tmp_path_factory.mktemp("one"), patch)
        return found[case]

    return curve_of


QUICK = [("translating", "data"), ("translating", "all"), ("classifying", "all")]
SLOW = [
    ("translating", "fsdp"),
    ("translating", "fsdp and tensor"),
    ("everything", "fsdp"),
    ("everything", "all"),
    ("classifying", "fsdp"),
]


@pytest.mark.parametrize(("case", "mesh"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_the_losses_of_twenty_steps_are_the_same_on_any_mesh(case, mesh, on_one_device, tmp_path, monkeypatch):
    expected = on_one_device(case)
    losses, _ = curve(CASES[case](), MESHES[mesh], tmp_path, monkeypatch)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.mean(losses[-3:]) < 0.95 * losses[0], "it learns"


def test_all_savings_of_memory_together_learn_in_bfloat16(tmp_path, monkeypatch):
    config = everything()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full", dtype="bfloat16"))
    losses, _ = curve(config, MESHES["fsdp"], tmp_path, monkeypatch)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * losses[0]


def test_validation_is_shared_out_over_a_mesh(tmp_path, monkeypatch):
    found = []
    for number, sizes in enumerate((ONE, MESHES["all"])):
        run = prepared(translating(), sizes, tmp_path / str(number), monkeypatch)
        found.append(run.evaluator.loss_sums(first_state(run).params))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("scanned", [False, True], ids=["apart", "scanned"])
def test_norms_by_layer_do_not_depend_on_the_mesh(tmp_path, monkeypatch, scanned):
    config = translating(scan_layers=scanned, num_encoder_layers=2)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, log_norms=True))
    found = []
    for sizes in (ONE, MESHES["all"]):
        run = prepared(config, sizes, tmp_path / str(len(found)), monkeypatch)
        batch, _ = next(run.batches.iterate())
        state, sums = run.train_step(first_state(run), shard_batch(batch, run.mesh))
        found.append(norms_of(sums))
        params = jax.device_get(unstack_layers(state.params))
    alone, together = found
    assert together == pytest.approx(alone, rel=1e-4)
    for stack, number in (("encoder", 0), ("encoder", 1), ("decoder", 0)):
        module = jax.tree.leaves(params[stack]["layers"][number]["self_attention"])
        by_hand = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in module))
        assert together[f"param_norm/{stack}.{number}.self_attention"] == pytest.approx(by_hand, rel=1e-5)
