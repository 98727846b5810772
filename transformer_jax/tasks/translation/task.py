"""Translation: sentence pairs, cross-entropy, BLEU."""

from collections.abc import Sequence

from transformer_jax.config import Config
from transformer_jax.data.readers import drop_blank_pairs
from transformer_jax.nn.losses import Params
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.metrics import exact_match, translation_scores
from transformer_jax.tasks.seq2seq_task import Seq2SeqTask
from transformer_jax.tasks.translation.sources import load_pairs


class TranslationTask(Seq2SeqTask):
    """Source sentences to target sentences; see `tasks.base.Task`."""

    metrics = ("loss", "perplexity", "exact_match", "bleu", "bleu_lowercase", "chrf")

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and train a tokenizer unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        data = config.data
        train, validation = load_pairs(data, data.train_split), load_pairs(data, data.validation_split)
        notes = []
        if data.name == "text":
            train, blank = drop_blank_pairs(train)
            notes.append(f"left out {blank:,} training pairs with a blank side")
        # Two vocabularies may have the same size, so the model cannot check this.
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

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Perplexity and BLEU on the validation data; greedy search unless `final`."""
        sources, references = (list(side) for side in zip(*self.validation, strict=True))
        outputs = self.outputs(params, final=final)
        scores = {
            **self.likelihood(params),
            "exact_match": exact_match(outputs, references),
            **translation_scores(outputs, references),
        }
        return Evaluation(scores, list(zip(sources, outputs, references, strict=True)))

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        case = str.lower if self.config.data.lowercase else str
        sources, targets = super()._sides(pairs)
        return [case(text) for text in sources], [case(text) for text in targets]
