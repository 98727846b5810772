"""Which records are kept from training, decided by what they say and not by where they stand."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Record = TypeVar("Record")


def is_held_out(text: str, percent: float) -> bool:
    """Whether a text belongs to the `percent` % that validation gets; the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2**64


def cut(
    records: Iterable[Record], key: Callable[[Record], str], percent: float
) -> tuple[list[Record], list[Record]]:
    """Part records into those for training and those held out; records of equal keys stay together."""
    kept: list[Record] = []
    held_out: list[Record] = []
    for record in records:
        (held_out if is_held_out(key(record), percent) else kept).append(record)
    return kept, held_out
