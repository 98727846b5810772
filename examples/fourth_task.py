"""A fourth task, spelling numbers backwards ("drei" to "ierd"), without touching the package.

Run `python examples/fourth_task.py`, which trains, saves, loads and answers. With arguments it is `transformer-jax`
with one more task: `python examples/fourth_task.py reverse --model DIR drei`. Its config works with train.py, and with
`python examples/fourth_task.py evaluate --model DIR --config=examples/fourth_task.py --split=validation`.
"""

import sys
import tempfile

from transformer_jax import Seq2SeqTask, Translator, default_config, load, register_task, run
from transformer_jax.cli import main
from transformer_jax.tasks.pair_command import PairCommand
from transformer_jax.tasks.translation.sources import number_words


class Backwards(Seq2SeqTask):
    """Words to the same words backwards: `Seq2SeqTask` with other data."""

    data_name = "number words, backwards"

    def __init__(self, config, tokenizer_files):
        words = [number_words(number, language) for language in ("de", "es", "fr") for number in range(2000)]
        pairs = [(word, word[::-1]) for word in words if len(word) < config.data.max_length]
        train = [pair for i, pair in enumerate(pairs) if i % 19]
        super().__init__(config, train, pairs[::19], tokenizer_files, notes=[])


register_task("backwards", Backwards, Translator, command=PairCommand("reverse", "spell words backwards"))


def get_config():
    """A small model of characters."""
    config = default_config()
    config.task = "backwards"
    config.tokenizer.kind = "char"
    config.data.update(max_length=24, row_length=48, tokens_per_batch=1536)
    config.model.update(d_model=64, d_ff=128, num_encoder_layers=2, num_decoder_layers=2)
    config.model.update(dropout_rate=0.0, norm_first=True)
    config.optim.update(schedule="cosine", lr=5e-3, warmup_steps=20, label_smoothing=0.0)
    config.training.update(num_steps=250, eval_every=250, checkpoint_every=250, metric="exact_match")
    return config


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main())
    outcome = run(get_config(), tempfile.mkdtemp())
    print(load(outcome.model).translate(["drei", "quatre", "siebenhundertzwölf"]))
