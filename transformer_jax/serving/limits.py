"""Limits of a server."""

from dataclasses import dataclass
from typing import Annotated

from transformer_jax.system import Positive, Range, check_fields


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Raises:
        UserError: if a value is out of range.
    """

    max_characters: Positive = 5000
    """Of a text."""
    max_lines: Positive = 64
    """Texts of a request."""
    max_beam: Positive = 8
    """Hypotheses of a search, and outputs for a text."""
    max_waiting: Positive = 256
    """Requests that wait for each model."""
    max_streams: Positive = 4
    """Answers that are streamed at a time."""
    max_bytes: Positive = 1 << 20
    """Of the body of a request."""
    body_seconds: Annotated[float, Range(above=0, most=3600)] = 30.0
    """For the whole body to arrive."""
    gather_ms: Annotated[float, Range(0, 1000)] = 5.0
    """Milliseconds at most that a request waits for others to be answered with it."""
    drain_seconds: Annotated[float, Range(0, 3600)] = 30.0
    """For requests that are being answered, after SIGTERM."""

    def __post_init__(self) -> None:
        check_fields(self)
