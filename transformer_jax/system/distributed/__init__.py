"""Several processes as one program: how they meet, exchange values and end together.

Nothing outside this package uses `jax.distributed`.
"""

from transformer_jax.system.distributed.exchange import (
    Exchange,
    all_gather,
    assert_equal,
    barrier,
    broadcast,
    broadcast_files,
    is_main,
    local_copy,
    parallel_map,
    process_count,
    process_index,
)
from transformer_jax.system.distributed.lifecycle import (
    PEER_LOST,
    exit_all,
    exit_if_peer_lost,
    exit_together,
    initialize,
    raise_if_collective,
)

__all__ = [
    "PEER_LOST",
    "Exchange",
    "all_gather",
    "assert_equal",
    "barrier",
    "broadcast",
    "broadcast_files",
    "exit_all",
    "exit_if_peer_lost",
    "exit_together",
    "initialize",
    "is_main",
    "local_copy",
    "parallel_map",
    "process_count",
    "process_index",
    "raise_if_collective",
]
