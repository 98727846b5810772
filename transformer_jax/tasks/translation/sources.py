"""Sentence pairs by the name of their set: the embedded numerals, text files, or prepared by TFDS."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from transformer_jax.data.readers import MappedRecords, cut, is_blank, text_pairs
from transformer_jax.data.tfds_sets import load_records
from transformer_jax.system import UserError

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
        split: a split of the set, as TFDS writes it (`train`, `train[:1000]`); `text` has train and validation.

    Raises:
        UserError: for an unknown set, split or language, and for files that are missing or broken.
    """
    if config.name == "numerals":
        return Numerals(config.source_language, config.target_language, split)
    if config.name == "text":
        return text_pairs(config, split, ("sentence", "sentence"))
    return _tfds_pairs(config, split)


class PairData(NamedTuple):
    """Data of a translation model."""

    train: Sequence[Pair]
    validation: Sequence[Pair]
    notes: list[str]
    """What was left out and held out, a sentence each."""


def load_training_data(config: "DataConfig") -> PairData:
    """Pairs for training and validation.

    Of your own files, training pairs with a blank side are left out. Without a `validation_split`, `validation_percent`
    % of the training pairs are held out, those of equal sources together.

    Raises:
        UserError: as `load_pairs`, and if `validation_percent` leaves a part empty.
    """
    train = load_pairs(config, config.train_split)
    notes = []
    if config.name == "text":
        train, blank = drop_blank_pairs(train)
        if blank:
            notes.append(f"left out {blank:,} training pairs with a blank side")
    if config.validation_split:
        return PairData(train, load_pairs(config, config.validation_split), notes)
    train, validation = cut(train, lambda pair: pair[0], config.validation_percent)
    notes.append(f"{config.validation_percent:g} % of the sources are held out for validation")
    return PairData(train, validation, notes)


def drop_blank_pairs(pairs: Iterable[Pair]) -> tuple[list[Pair], int]:
    """Drop pairs with a blank side; also returns the number dropped."""
    pairs = list(pairs)
    kept = [(source, target) for source, target in pairs if not (is_blank(source) or is_blank(target))]
    return kept, len(pairs) - len(kept)


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


LANGUAGES = ("de", "en", "es", "fr")
MAX_DIGITS = 6
SPLITS = ("train", "validation", "test")

_TRAIN_SIZE = 1_000_000
_HELD_OUT_SIZE = 1_000
_HELD_OUT_PERCENT = 5
_SMALLEST_HELD_OUT = 100  # training sees all smaller numbers: the longer ones are made of them


class Numerals(Sequence[tuple[str, str]]):
    """Pairs of number words for 0 to 999,999.

    A fixed hash gives every number to one split, whatever the seed. Short and long numbers are equally likely: the
    number of digits is drawn first. `train` draws with repetition, item i being a function of the seed and i;
    `validation` and `test` are 1,000 different numbers each, the same for every seed.
    """

    def __init__(self, source_language: str, target_language: str, split: str, seed: int = 0) -> None:
        """Prepare a split.

        Raises:
            UserError: for an unknown language or split.
        """
        for field, language in (("source_language", source_language), ("target_language", target_language)):
            if language not in LANGUAGES:
                raise UserError(
                    f"config.data.{field} is {language!r}, but numerals speak one of {', '.join(LANGUAGES)}."
                )
        if split not in SPLITS:
            raise UserError(f"numerals have no split {split!r}, only {', '.join(SPLITS)}.")
        self._source_language = source_language
        self._target_language = target_language
        self._seed = seed
        self._held_out = None if split == "train" else _held_out_numbers(split)

    def __len__(self) -> int:
        return _TRAIN_SIZE if self._held_out is None else len(self._held_out)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        """Words of the number at an index, in both languages."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self.number(index)
        return number_words(number, self._source_language), number_words(number, self._target_language)

    def number(self, index: int) -> int:
        """The number at an index."""
        index = range(len(self))[index]
        if self._held_out is not None:
            return self._held_out[index]
        return _draw("train", _mix(self._seed), index)


def number_words(number: int, language: str) -> str:
    """Words for 0 to 999,999, equal to those of num2words but put together from remembered parts, as it is slow."""
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _words(rest, language)
    head = _words(thousands * 1000, language)
    return head + _joiner(rest, language) + _words(rest, language) if rest else head


def split_of(number: int) -> str:
    """The split that a number belongs to."""
    percent = _mix(number) % 100
    if number < _SMALLEST_HELD_OUT or percent >= 2 * _HELD_OUT_PERCENT:
        return "train"
    return "validation" if percent < _HELD_OUT_PERCENT else "test"


def _joiner(rest: int, language: str) -> str:
    """What stands between the thousands and the rest."""
    if language == "en":
        return " and " if rest < 100 else ", "
    return "" if language == "de" else " "


@cache
def _words(number: int, language: str) -> str:
    from num2words import num2words

    return str(num2words(number, lang=language))


@cache
def _held_out_numbers(split: str) -> tuple[int, ...]:
    numbers: dict[int, None] = {}  # a set that keeps the order
    index = 0
    while len(numbers) < _HELD_OUT_SIZE:
        numbers[_draw(split, _mix(SPLITS.index(split)), index)] = None
        index += 1
    return tuple(numbers)


def _draw(split: str, stream: int, index: int) -> int:
    """The number of `split` at a place of a random stream: first its digits' count, then itself."""
    bits = _mix(stream ^ index)
    while True:
        digits, bits = 1 + bits % MAX_DIGITS, _mix(bits)
        low = 10 ** (digits - 1) if digits > 1 else 0
        number, bits = low + bits % (10**digits - low), _mix(bits)
        if split_of(number) == split:
            return number


def _mix(value: int) -> int:
    """A 64-bit hash (the finalizer of SplitMix64; Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
