"""How a command's work is shared out: among processes, and in each among its devices."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformer_jax.errors import UserError

_PLACE = ("distributed", "coordinator", "num_processes", "process_id")
_OF_THE_FIRST = ("output", "picture")
_NAME_CONTENT = ("texts", "uppers", "model", "data", "source", "reference", "config", "manual_dir")
_MAY_DIFFER = {"command", *_PLACE, *_OF_THE_FIRST, *_NAME_CONTENT}
"""Arguments that need not be the same at all processes; where they name texts or a model, these must."""


@contextlib.contextmanager
def beside_others(arguments: argparse.Namespace) -> Iterator[None]:
    """Meet the other processes that were started for this command, if there are any, and end with them.

    To be entered before anything else that has to do with JAX.

    Raises:
        UserError: if they are not there.
    """
    from transformer_jax import processes

    processes.start(
        distributed=arguments.distributed,
        coordinator=arguments.coordinator,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
    )
    with processes.ending_together():
        yield
        processes.wait_for_all()  # whether the first can write what it has to is the others' affair too


def share_out(model: Any, arguments: argparse.Namespace, texts: Sequence[Any], check: Callable[[], None]) -> None:
    """Make ready for `processes.deal` of these texts: the model is put on all devices of this process.

    Args:
        model: as the command has loaded it.
        arguments: of the command.
        texts: all of them; what `json` can write.
        check: called if there are several processes; should refuse texts that the model does not take, by their numbers
            among all. Those among the texts that a process is dealt would mislead.

    Raises:
        UserError: if the processes were given different texts, options or models.
    """
    import jax

    from transformer_jax import processes
    from transformer_jax.bundle.storage import CONFIG_FILE
    from transformer_jax.devices import replicated
    from transformer_jax.paths import as_path

    if jax.local_device_count() > 1:
        model.params = replicated(model.params)
    if processes.count() == 1:
        return
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    options = {name: value for name, value in vars(arguments).items() if name not in _MAY_DIFFER}
    processes.agree(
        {
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
            "The input": f"{len(texts):,} texts of SHA-256 {digest[:12]}",
            # It holds the hashes of all other files.
            "The model": hashlib.sha256((as_path(arguments.model) / CONFIG_FILE).read_bytes()).hexdigest()[:12],
        }
    )
    check()


def require_one_process(option: str) -> None:
    """Refuse an option that works on all texts, in order.

    Raises:
        UserError: if there are several processes.
    """
    from transformer_jax import processes

    if processes.count() > 1:
        raise UserError(f"{option} needs all texts in one process; drop it, or start a single process.")
