# ruff: noqa: D102  (the fields are documented in config.DataConfig)
"""A part held out of the training data by a fixed hash of the text: the same on every machine, in every order."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar, runtime_checkable

from transformer_jax.errors import UserError

Record = TypeVar("Record")

_BITS = 64


@runtime_checkable
class TrainingPartsConfig(Protocol):
    """What training data are put together by: fields of `config.DataConfig`."""

    @property
    def train_split(self) -> str: ...
    @property
    def validation_split(self) -> str: ...
    @property
    def validation_percent(self) -> float: ...
    @property
    def extra_train(self) -> str: ...
    @property
    def blocklist(self) -> str: ...


def is_held_out(text: str, percent: float) -> bool:
    """Whether a text is among the `percent` % of all texts that are held out; more percent only add to them.

    Args:
        text: any; equal texts have the same fate.
        percent: 0 (none) to 100 (all).
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BITS // 8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2**_BITS


def cut(records: Iterable[Record], key: Callable[[Record], str], percent: float) -> tuple[list[Record], list[Record]]:
    """Records apart as (kept, held out), in their order; those with the same key end on the same side.

    Raises:
        UserError: if `percent` leaves nothing on either side, unless there are no records at all.
    """
    if not 0 < percent < 100:
        raise UserError(
            f"config.data.validation_percent is {percent:g}, but must be above 0 and below 100 where "
            "config.data.validation_split is empty."
        )
    parts: tuple[list[Record], list[Record]] = [], []
    for record in records:
        parts[is_held_out(key(record), percent)].append(record)
    for part, share, remedy in ((parts[1], "none", "raise"), (parts[0], "all", "lower")):
        if not part and (count := len(parts[0]) + len(parts[1])):
            raise UserError(
                f"config.data.validation_percent is {percent:g}, which holds out {share} of {count:,} records; "
                f"{remedy} it."
            )
    return parts


def apart_from(held_out: Iterable[Record], records: Iterable[Record], key: Callable[[Record], str]) -> list[Record]:
    """Those of further records whose key none of the held-out ones has."""
    keys = {key(record) for record in held_out}
    return [record for record in records if key(record) not in keys]
