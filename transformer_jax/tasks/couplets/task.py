"""Couplets (对联): upper lines to lower lines, cross-entropy over characters, rules."""

from collections.abc import Sequence

from transformer_jax.config import Config
from transformer_jax.nn.losses import Params
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.generate import write
from transformer_jax.tasks.couplets.rules import NAMES, Rules, couplet_scores, plain, rule_shares
from transformer_jax.tasks.couplets.sources import load_training_data
from transformer_jax.tasks.seq2seq_task import Seq2SeqTask


class CoupletTask(Seq2SeqTask):
    """Upper lines to lower lines; see `tasks.base.Task`."""

    TOKENIZER_PAIRS = 2_000_000  # counting characters is fast, and rare ones matter
    metrics: tuple[str, ...] = (
        "loss",
        "perplexity",
        "exact_match",
        "bleu",
        "distinct_1",
        "distinct_2",
        *(f"keeps_{name}" for name in NAMES),
    )

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and collect its characters as the vocabulary unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        if config.tokenizer.kind != "char" or not config.tokenizer.joint:
            raise UserError(
                "config.tokenizer must be kind='char', joint=True for couplets: their rules are about characters."
            )
        if config.data.lowercase:
            raise UserError("config.data.lowercase is True, but couplets are read as they are; drop it.")
        self.rules = Rules.parse(config.couplet.rules)
        data = load_training_data(config.data, config.couplet)
        super().__init__(config, data.train, data.validation, tokenizer_files, data.notes)
        self.data_name = config.data.name
        self.settings["rules"] = config.couplet.rules

    def predict(self, params: Params, numbers: Sequence[int], *, final: bool) -> list[str]:
        """Lower lines that keep the rules; see `Seq2SeqTask.predict`."""
        uppers = [self.validation[number][0] for number in numbers]
        options = self.search_options(final=final)
        found = write(self.generator, params, self.tokenizer.target, uppers, options, self.rules)
        return [best.text for best, *_ in found]

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        uppers, lowers = super()._sides(pairs)
        return list(map(plain, uppers)), list(map(plain, lowers))

    def output_scores(self, sources: list[str], outputs: list[str], references: list[str]) -> dict[str, float | str]:
        """Exact match, BLEU, distinct n-grams and the share of kept rules."""
        shares = {f"keeps_{name}": share for name, share in rule_shares(sources, outputs).items()}
        return {**couplet_scores(outputs, references), **shares}
