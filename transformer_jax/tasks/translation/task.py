"""Translation: sentence pairs, cross-entropy, BLEU."""

from collections.abc import Sequence

from transformer_jax.config import Config
from transformer_jax.system import UserError
from transformer_jax.tasks.metrics import translation_scores
from transformer_jax.tasks.seq2seq_task import Seq2SeqTask
from transformer_jax.tasks.translation.sources import load_training_data


class TranslationTask(Seq2SeqTask):
    """Source sentences to target sentences; see `tasks.base.Task`."""

    metrics = ("loss", "perplexity", "exact_match", "bleu", "bleu_lowercase", "chrf")

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and train a tokenizer unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        data = config.data
        train, validation, notes = load_training_data(data)
        # Two vocabularies of the same size would pass the model's own check.
        if tokenizer_files is None and config.model.one_vocabulary and not config.tokenizer.joint:
            raise UserError(
                f"config.model.tie_embeddings is {config.model.tie_embeddings!r}, but must be output or none where the "
                "languages have vocabularies of their own (config.tokenizer.joint=False)."
            )
        super().__init__(config, train, validation, tokenizer_files, notes)
        self.data_name = f"{data.name}, {data.source_language}-{data.target_language}"
        self.settings |= {
            "source_language": data.source_language,
            "target_language": data.target_language,
            "lowercase": data.lowercase,
        }

    def output_scores(self, sources: list[str], outputs: list[str], references: list[str]) -> dict[str, float | str]:
        """Exact match, BLEU and chrF."""
        scores = translation_scores(outputs, references, target_language=self.config.data.target_language)
        return {**super().output_scores(sources, outputs, references), **scores}

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        case = str.lower if self.config.data.lowercase else str
        sources, targets = super()._sides(pairs)
        return [case(text) for text in sources], [case(text) for text in targets]
