"""Labelled texts by the name of their set: embedded, from text files, or prepared by TFDS."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_jax.data.readers import MappedRecords, apart_from, cut
from transformer_jax.data.tfds_sets import load_records
from transformer_jax.system import UserError
from transformer_jax.tasks.classification import ClassificationConfig, headlines
from transformer_jax.tasks.classification.labelled import (
    AG_NEWS_COLUMNS,
    AG_NEWS_EXTRA_COLUMNS,
    Columns,
    Labelled,
    join_columns,
    read_labelled,
)

if TYPE_CHECKING:  # importing config imports JAX
    from transformer_jax.config import DataConfig

OWN_SETS = {"ag_news": "transformer_jax.tasks.classification.ag_news"}
"""See `load_records`."""

_EXPECTED = (
    "headlines, text, ag_news or a TFDS set with a text and one class label, such as ag_news_subset, imdb_reviews, "
    "glue/sst2"
)
_CLASSES_SHOWN = 10


class TextData(NamedTuple):
    """Data of a classifier."""

    train: Sequence[Labelled]
    validation: list[Labelled]
    classes: tuple[str, ...]
    notes: list[str]
    """What was read, a sentence each."""


def load_texts(
    config: "DataConfig", split: str, report: Callable[[str], None] = lambda sentence: None
) -> tuple[Sequence[Labelled], tuple[str, ...]]:
    """A split of a set of labelled texts, prepared first if need be, and the names of its classes.

    Args:
        config: `name` is headlines, text, ag_news, or a TFDS set with text features and one `ClassLabel`, such as
            ag_news_subset, whose configuration may follow a slash. Several text features are joined by a space, title
            first. With `manual_dir`, ag_news_subset too is read from AG News's own files there.
        split: a split of the set, as TFDS writes it (`train`, `train[:1000]`); `text` has train and validation.
        report: called with a sentence about the columns of the training file.

    Returns:
        The records, and the class names in the order of their numbers; for `text` those of the training file, sorted.

    Raises:
        UserError: for an unknown set, split or label, and for files that are missing or broken.
    """
    if config.name == "headlines":
        return headlines.Headlines(split), headlines.CLASSES
    if config.name == "text":
        return _from_files(config, split, report)
    return _from_tfds(config, split)


def columns_of(config: "DataConfig") -> Columns:
    """Columns of the files of a set: AG News's own, or those of `config`."""
    if config.name.startswith("ag_news"):
        return AG_NEWS_COLUMNS
    return Columns(config.text_columns, config.label_column)


def load_training_data(config: "DataConfig", own: ClassificationConfig) -> TextData:
    """Texts for training and validation.

    Without a `validation_split`, `validation_percent` % of the training texts are held out, equal ones together. Texts
    of `own.extra_train` that are in the validation part are left out. That file has the columns of `config`; for AG
    News, rows of class, kind and text without a header.

    Raises:
        UserError: as `load_texts`, and if either part has no texts.
    """
    notes: list[str] = []
    train, classes = load_texts(config, config.train_split, notes.append)
    if config.validation_split:
        validation = list(load_texts(config, config.validation_split)[0])
    else:
        train, validation = cut(train, _text, config.validation_percent)
    if own.extra_train:
        columns = AG_NEWS_EXTRA_COLUMNS if config.name.startswith("ag_news") else columns_of(config)
        extra = apart_from(validation, read_labelled(own.extra_train, classes=classes, columns=columns), _text)
        train = [*train, *extra]
        notes.append(f"{len(extra):,} of the training texts are from {own.extra_train}")
    for part, records in (("training", train), ("validation", validation)):
        if not len(records):
            raise UserError(f"The {part} data has no texts; check the files under config.data.")
    named = ", ".join([*classes[:_CLASSES_SHOWN], *(["..."] if len(classes) > _CLASSES_SHOWN else [])])
    sizes = f"{len(train):,} training texts, {len(validation):,} validation texts"
    return TextData(train, validation, classes, [f"{sizes}, {len(classes)} classes: {named}", *notes])


def _text(record: Labelled) -> str:
    return record.text


def _from_files(
    config: "DataConfig", split: str, report: Callable[[str], None]
) -> tuple[list[Labelled], tuple[str, ...]]:
    files = {"train": config.train_file, "validation": config.validation_file}
    if split not in files:
        raise UserError(f"config.data.name=text has no split {split!r}, only {', '.join(files)}.")
    for needed in dict.fromkeys(("train", split)):
        if not files[needed]:
            cut = ", or cut a part with an empty config.data.validation_split" if needed == "validation" else ""
            raise UserError(f"config.data.{needed}_file is empty; name a CSV, TSV or JSON Lines file{cut}.")
    columns = columns_of(config)
    train = read_labelled(config.train_file, columns=columns, report=report)
    classes = tuple(sorted({record.label for record in train}))
    if len(classes) < 2:
        raise UserError(f"{config.train_file} has only the class {classes[0]!r}; a classifier needs at least two.")
    if split == "train":
        return train, classes
    return read_labelled(files[split], classes=classes, columns=columns), classes


class _Form(NamedTuple):
    """How a TFDS set names its parts."""

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]


def _from_tfds(config: "DataConfig", split: str) -> tuple[Sequence[Labelled], tuple[str, ...]]:
    own = config.name == "ag_news_subset" and config.manual_dir
    forms: list[_Form] = []
    records = load_records(
        "ag_news" if own else config.name,
        split,
        own_sets=OWN_SETS,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        expected=_EXPECTED,
        check=lambda info: forms.append(_form(info)),
    )
    texts, label, classes = forms[0]

    def labelled(record: Mapping[str, Any]) -> Labelled:
        number = int(record[label])
        if number < 0:  # TFDS's mark of a test set whose labels are secret
            raise UserError(f"{config.name} has records without a label in {split!r}; name another split.")
        return Labelled(join_columns(record[text].decode("utf-8") for text in texts), classes[number])

    mapped = MappedRecords(records, labelled)
    _ = mapped[:1]  # so that a split without labels is reported at once
    return mapped, classes


def _form(info: Any) -> _Form:
    """The names of the text features, title first, and the one class label of a TFDS set."""
    import tensorflow_datasets as tfds

    # A set may have another form altogether, such as one tensor.
    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not texts or len(labels) != 1:
        raise UserError(
            f"{info.full_name} has the features {', '.join(features)}, but a text and one class label are needed; "
            "name another set in config.data.name."
        )
    texts.sort(key=lambda name: name != "title")
    return _Form(tuple(texts), labels[0], tuple(features[labels[0]].names))
