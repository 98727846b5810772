"""Couplets by the name of their set, and the training and validation data made of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_jax.data.readers import apart_from, cut, find_file, read_lines, read_pairs, text_pairs
from transformer_jax.data.tfds_sets import load_records
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path
from transformer_jax.tasks.couplets import CoupletConfig
from transformer_jax.tasks.couplets.antitheses import antitheses
from transformer_jax.tasks.couplets.rules import characters, plain

if TYPE_CHECKING:  # importing config imports JAX
    from transformer_jax.config import DataConfig

OWN_SETS = {"couplet": "transformer_jax.tasks.couplets.couplet_dataset"}
"""See `load_records`."""

Couplet = tuple[str, str]
"""Upper and lower line; see `without_spaces`."""


class Fit(NamedTuple):
    """Couplets to learn from, and the number left out for each reason."""

    couplets: list[Couplet]
    blank: int
    unequal: int
    blocked: int


def without_spaces(line: str) -> str:
    """A line without white space of any kind, and without what is invisible, as `rules.characters` has it."""
    return "".join(_visible(line))


def _visible(line: str) -> list[str]:
    """The `rules.characters` of a line that are no white space."""
    return characters("".join(line.split()))


def read_couplets(upper_path: str | AnyPath, lower_path: str | AnyPath) -> list[Couplet]:
    """Read two files aligned line by line; spaces between characters are left out.

    Raises:
        UserError: if a file cannot be read or has no lines, or their line counts differ.
    """
    pairs = read_pairs(upper_path, lower_path)
    if not pairs:
        raise UserError(f"{upper_path} and {lower_path} have no lines; name files with couplets.")
    return [(without_spaces(upper), without_spaces(lower)) for upper, lower in pairs]


def read_blocklist(path: str | AnyPath) -> list[str]:
    """Words of a file, one a line; the rest of a line after # is a comment.

    Raises:
        UserError: if the file cannot be read or is not UTF-8.
    """
    words = (plain(without_spaces(line.partition("#")[0])) for line in read_lines(path))
    return [word for word in words if word]


def leave_out_unfit(couplets: Iterable[Couplet], blocklist: Iterable[str] = ()) -> Fit:
    """Leave out couplets with a blank line, lines of unequal length, or a word of the blocklist in either line.

    The rest is as `without_spaces` has it.
    """
    words = [re.escape(word) for word in blocklist]
    has_blocked_word = re.compile("|".join(words)).search if words else lambda text: None
    fit: list[Couplet] = []
    blank = unequal = blocked = 0
    for upper, lower in couplets:
        above, below = _visible(upper), _visible(lower)
        upper, lower = "".join(above), "".join(below)
        if not above or not below:
            blank += 1
        elif len(above) != len(below):
            unequal += 1
        elif has_blocked_word(plain(upper)) or has_blocked_word(plain(lower)):
            blocked += 1
        else:
            fit.append((upper, lower))
    return Fit(fit, blank, unequal, blocked)


_CHUNK = 65_536


@dataclass(frozen=True)
class CoupletData:
    """Training and validation data."""

    train: list[Couplet]
    validation: list[Couplet]
    notes: list[str]
    """What was read, left out and held out, a sentence each."""


def load_couplets(config: "DataConfig", split: str) -> list[Couplet]:
    """All couplets of a split, as they are in the set.

    Args:
        config: `name` is antitheses (embedded), couplet, or text (files of your own, uppers as source).
        split: a split, as TFDS writes it; antitheses has train, validation and test, text train and validation.

    Raises:
        UserError: for an unknown set or split, and for files that are missing or broken.
    """
    if config.name == "antitheses":
        return list(antitheses(split))
    if config.name == "text":
        pairs = text_pairs(config, split, ("upper line", "lower line"))
        if not pairs:
            raise UserError(f"The {split} files of config.data have no lines; name files with couplets.")
        return [(without_spaces(upper), without_spaces(lower)) for upper, lower in pairs]
    records = load_records(
        config.name,
        split,
        own_sets=OWN_SETS,
        manual_dir=config.manual_dir,
        data_dir=config.data_dir,
        expected="antitheses, text or couplet",
        check=_check_features,
    )
    return [
        (record["upper"].decode("utf-8"), record["lower"].decode("utf-8"))
        # In chunks: faster than one by one, and needs less memory than all at once.
        for start in range(0, len(records), _CHUNK)
        for record in records[start : start + _CHUNK]
    ]


def load_training_data(config: "DataConfig", own: CoupletConfig) -> CoupletData:
    """Couplets for training and validation, those unfit to learn from left out of both.

    Without a `validation_split`, `validation_percent` % of the upper lines of the training data are held out, with all
    lower lines that answer them. Couplets of `own.extra_train` that answer an upper line of validation are left out.

    Raises:
        UserError: as `load_couplets`, and if either part is left without couplets.
    """
    blocklist = read_blocklist(own.blocklist) if own.blocklist else []
    fit = leave_out_unfit(load_couplets(config, config.train_split), blocklist)
    notes = [_note(f"Training data {config.name} {config.train_split}", fit)]
    if config.validation_split:
        train = fit.couplets
        fit_validation = leave_out_unfit(load_couplets(config, config.validation_split), blocklist)
        validation = fit_validation.couplets
        notes.append(_note(f"Validation data {config.name} {config.validation_split}", fit_validation))
    else:
        train, validation = cut(fit.couplets, _upper, config.validation_percent)
        share = f"{config.validation_percent:g} % of the upper lines"
        notes.append(f"Validation data: {len(validation):,} of these, {share}, are held out")
    if own.extra_train:
        fit_extra = leave_out_unfit(_extra_couplets(own.extra_train), blocklist)
        extra = apart_from(validation, fit_extra.couplets, _upper)
        notes.append(_note(f"Further training data {own.extra_train}", fit_extra))
        notes.append(f"{len(fit_extra.couplets) - len(extra):,} of these answer an upper line of validation: left out")
        train = train + extra
    for part, couplets in (("training", train), ("validation", validation)):
        if not couplets:
            raise UserError(
                f"No couplets are left for {part}; check the files under config.data and config.couplet.blocklist."
            )
    return CoupletData(train, validation, notes)


def seen_uppers(uppers: Iterable[str], train: Iterable[Couplet]) -> list[bool]:
    """For each upper line whether it also stands in the training data, where it may have another answer."""
    known = set(map(_upper, train))
    return [plain(upper) in known for upper in uppers]


def _upper(couplet: Couplet) -> str:
    """The upper line, by which couplets are told apart."""
    return plain(couplet[0])


def _check_features(info: Any) -> None:
    missing = [name for name in ("upper", "lower") if name not in info.features]
    if missing:
        raise UserError(
            f"{info.full_name} is not a couplet set, it has no {missing[0]!r}; name one in config.data.name."
        )


def _extra_couplets(folder: str) -> list[Couplet]:
    upper, lower = (find_file(as_path(folder) / "train", name) for name in ("in.txt", "out.txt"))
    if upper is None or lower is None:
        raise UserError(
            f"config.couplet.extra_train is {folder}, which has no train/in.txt and train/out.txt (or with .gz); name "
            "a folder that has both."
        )
    return read_couplets(upper, lower)


def _note(what: str, fit: Fit) -> str:
    reasons = {"blank": fit.blank, "of unequal length": fit.unequal, "with a blocked word": fit.blocked}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"{what}: {len(fit.couplets):,} couplets" + (f" (left out: {left_out})" if left_out else "")
