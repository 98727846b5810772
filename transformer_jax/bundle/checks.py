"""What every trained model asks of its arguments."""

from collections.abc import Sequence

from transformer_jax.errors import UserError


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts.

    Raises:
        TypeError: if it is one string, or holds something else than strings.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string, but must be a list of strings")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text is of type {type(text).__name__}, but must be a str")


def check_batch_size(batch_size: int) -> None:
    """Refuse batches that hold nothing.

    Raises:
        UserError: if it is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but must be at least 1.")
