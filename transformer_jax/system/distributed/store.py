"""What JAX's coordinator keeps for all processes, and who they are."""

from typing import Any

import jax
from jax._src import distributed


def count() -> int:
    """Processes there are."""
    return distributed.global_state.num_processes


def index() -> int:
    """Number of this one, from 0."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this is the process that decides for all, and that writes what is written once."""
    return index() == 0


def put(key: str, value: str) -> None:
    """Set a key.

    Raises:
        jax.errors.JaxRuntimeError: if it is set already, or the first process has gone.
    """
    _client().key_value_set(f"transformer_jax/{key}", value)


def find(key: str) -> str | None:
    """The value of a key, or None if it is not set.

    Raises:
        jax.errors.JaxRuntimeError: if the first process has gone.
    """
    # Not by waiting for it: each time that it is not set in time, the first process keeps some memory for ever.
    try:
        return _client().key_value_try_get(f"transformer_jax/{key}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def delete(key: str) -> None:
    """Forget a key, and all that begin with it and a slash."""
    _client().key_value_delete(f"transformer_jax/{key}")


def wait_at_barrier(name: str, seconds: float) -> None:
    """Return when all processes have come here.

    Raises:
        jax.errors.JaxRuntimeError: if they have not after so long, or the first process has gone.
    """
    _client().wait_at_barrier(f"transformer_jax/{name}", round(1000 * seconds))


def _client() -> Any:
    return distributed.global_state.client
