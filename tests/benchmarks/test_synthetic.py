from dataclasses import replace

import jax
import numpy as np

from benchmarks.synthetic import FIRST_WORD, StepSize, SyntheticStep, batch_of
from transformer_jax.nn import ModelConfig

MODEL = ModelConfig(
    d_model=8,
    num_heads=2,
    d_ff=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=20,
    target_vocab_size=20,
)
SIZE = StepSize(MODEL, rows=2, length=6)


def test_rows_are_full_of_sentences():
    batch = batch_of(replace(SIZE, sentence_length=4))
    assert batch.source.shape == batch.target.shape == (2, 6)
    assert batch.source.min() >= FIRST_WORD
    assert batch.source.max() < 20
    np.testing.assert_array_equal(batch.target_segments, [[1, 1, 1, 1, 2, 2]] * 2)
    np.testing.assert_array_equal(batch_of(SIZE).source_segments, np.ones((2, 6)))


def test_a_step_runs_again_and_again_and_tells_its_memory():
    step = SyntheticStep(SIZE)
    assert step() > 0
    assert step() > 0
    assert int(step._state.step) == 2
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(step._state.params))
    assert step.peak_bytes > 3 * parameters > 0


def test_the_work_is_stated():
    assert str(SIZE) == (
        "one step of training (forward, backward, Adam), d_model 8, 2 heads, d_ff 8, 1+1 layers, vocabulary 20, "
        "post-norm, dropout 0.1, float32; 2 rows of 6 tokens a side"
    )
    saving = replace(SIZE, model=replace(MODEL, scan_layers=True, remat="full"), rows=1, loss_chunk=4)
    assert "1+1 layers scanned with remat=full, vocabulary 20" in str(saving)
    assert str(saving).endswith("1 row of 6 tokens a side, loss in chunks of 4")
