"""Several processes as one program: how they meet, agree, exchange values and end.

With one process, which is the rule, every function returns at once. Values travel as JSON through the key-value store
of the first process, which any thread may use. Nothing outside this package knows `jax.distributed`.
"""

from transformer_jax.system.distributed.ending import GONE, ending_together, leave, not_waiting_for_the_lost
from transformer_jax.system.distributed.exchange import (
    Exchange,
    agree,
    deal,
    files_of_first,
    first_says,
    gather,
    local_copy,
    wait_for_all,
)
from transformer_jax.system.distributed.meeting import start
from transformer_jax.system.distributed.store import count, index, is_first

__all__ = [
    "GONE",
    "Exchange",
    "agree",
    "count",
    "deal",
    "ending_together",
    "files_of_first",
    "first_says",
    "gather",
    "index",
    "is_first",
    "leave",
    "local_copy",
    "not_waiting_for_the_lost",
    "start",
    "wait_for_all",
]
