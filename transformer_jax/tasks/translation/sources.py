"""Sentence pairs by the name of their set: embedded, from text files, or prepared by TFDS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.data.readers import MappedRecords, pair_files, read_pairs
from transformer_jax.data.tfds_sets import load_records
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.translation.numerals import Numerals

if TYPE_CHECKING:  # importing config imports JAX
    from transformer_jax.config import DataConfig

Pair = tuple[str, str]

OWN_SETS = {"multi30k": "transformer_jax.tasks.translation.multi30k"}
"""See `load_records`."""

_EXPECTED = (
    "numerals, text, multi30k or a TFDS translation set, such as ted_hrlr_translate, ted_multi_translate, "
    "wmt14_translate, wmt16_translate, wmt19_translate"
)


def load_pairs(config: "DataConfig", split: str) -> Sequence[Pair]:
    """A split of a translation set as (source, target) sentences, prepared first if need be.

    Args:
        config: `name` is numerals, text, multi30k, or a TFDS set such as `wmt14_translate/de-en`; without the part
            after the slash, the configuration of the two languages is used.
        split: of the set, as TFDS writes it (`train`, `train[:1000]`); `text` has train and validation.

    Raises:
        UserError: for an unknown set, split or language, and for files that are missing or broken.
    """
    if config.name == "numerals":
        return Numerals(config.source_language, config.target_language, split)
    if config.name == "text":
        files = {
            "train": (config.train_source, config.train_target),
            "validation": (config.validation_source, config.validation_target),
        }
        return read_pairs(*pair_files(files, split, ("sentence", "sentence")))
    return _tfds_pairs(config, split)


def _tfds_pairs(config: "DataConfig", split: str) -> Sequence[Pair]:
    source, target = config.source_language, config.target_language

    def check_languages(info: Any) -> None:
        import tensorflow_datasets as tfds

        if not isinstance(info.features, tfds.features.Translation):
            raise UserError(f"{info.full_name} is not a translation set; name another in config.data.name.")
        for field, language in (("source_language", source), ("target_language", target)):
            if language not in info.features:
                raise UserError(
                    f"config.data.{field} is {language!r}, but {info.full_name} has only "
                    f"{', '.join(info.features.languages)}."
                )

    records = load_records(
        config.name,
        split,
        own_sets=OWN_SETS,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        wanted=(f"{source}-{target}", f"{target}-{source}"),
        expected=_EXPECTED,
        check=check_languages,
    )
    return MappedRecords(records, lambda record: (record[source].decode("utf-8"), record[target].decode("utf-8")))
