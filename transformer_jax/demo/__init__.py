"""The page of `transformer-jax demo`, on which models are tried in a browser; Gradio is imported when it is built."""

import argparse
import importlib.metadata
import importlib.util
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformer_jax.system import UserError, files, is_loopback
from transformer_jax.system.files import AnyPath
from transformer_jax.system.runtime import show
from transformer_jax.tasks.command_line import progress
from transformer_jax.tasks.registry import resolved

if TYPE_CHECKING:
    from transformer_jax.demo.page import Page
    from transformer_jax.tasks.tab import Tab

LOOPBACK = "127.0.0.1"
PORT = 7860
OLDEST_GRADIO = (6, 31)


def add_commands(commands: Any) -> None:
    """Add the subcommand `demo`."""
    parser = commands.add_parser(
        "demo",
        help="try models on a page in the browser",
        description="Serve a page on which models are tried in a browser, with a tab for each task of the models. It "
        "needs no network, and only this machine can open it unless --host says otherwise. Ctrl-C ends it.",
        epilog="Needs the extra demo: pip install 'transformer-jax[demo]'. With --host 0.0.0.0 everyone who reaches "
        "this machine can use the models.",
        example="transformer-jax demo --model runs/numerals",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_demo)
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="DIR",
        help="a model folder, or the folder of its run, such as runs/numerals; may be given several times",
    )
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help=f"address to listen at [{LOOPBACK}]")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port; 0: one that is free [{PORT}]")


def build(models: Mapping[str, Any]) -> "Page":
    """The page for some models, Gradio Blocks: `build({"numerals": load("runs/numerals")}).launch()`.

    Args:
        models: what `transformer_jax.load` returns, at least one, by the names that visitors see. Those that are used
            in the same way share a tab.

    Raises:
        UserError: if Gradio is not installed, there is no model, or one of a class without a tab.
    """
    kinds: dict[type[Tab], dict[str, Any]] = {}
    for name, model in models.items():
        tab = getattr(model, "tab", None)
        if tab is None:
            raise UserError(f"{name} is a {type(model).__name__}, which the page has no tab for; leave it out.")
        kinds.setdefault(resolved(tab), {})[name] = model
    if not kinds:
        raise UserError("The page has no model; name at least one.")
    _require_gradio()
    from transformer_jax.demo.page import Page

    return Page([kind(of_kind) for kind, of_kind in kinds.items()])


def _demo(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port is {arguments.port}, but must be from 0 to 65535.")
    # Before models are loaded, which takes longer.
    _require_gradio()
    _free_port(arguments.host, arguments.port)
    from transformer_jax.tasks.model_folder import folder_of, load

    models: dict[str, Any] = {}
    for path in arguments.model:
        models[_free_name(_name_of(files.resolved(folder_of(path))), models)] = load(path)
    page = build(models)
    port = _free_port(arguments.host, arguments.port)
    try:
        address = page.serve(arguments.host, port)
    except OSError as error:
        raise UserError(f"The page cannot be served on port {port} ({error}); try again, or name another.") from error
    try:
        show(f"The page is at {address}")
        if not is_loopback(arguments.host):
            progress(f"{arguments.host} may be reachable from other machines, which can then use the models")
        threading.Event().wait()  # until a signal
    finally:
        page.close(verbose=False)


def _name_of(path: AnyPath) -> str:
    """The name of a model: that of its run, numerals for runs/numerals/model, or of its folder."""
    return (path.parent.name if path.name == "model" else path.name) or path.name or "model"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    names = [name, *(f"{name} {number}" for number in range(2, len(taken) + 2))]
    return next(each for each in names if each not in taken)


def _require_gradio() -> None:
    remedy = "install it: pip install 'transformer-jax[demo]'."
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"The page needs Gradio; {remedy}")
    found = importlib.metadata.version("gradio")
    if tuple(map(int, found.split(".")[:2])) < OLDEST_GRADIO:
        raise UserError(f"The page needs Gradio {'.'.join(map(str, OLDEST_GRADIO))} or later, not {found}; {remedy}")


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 one that is free.

    Raises:
        UserError: if nothing can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as found:
            return int(found.getsockname()[1])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Port {port} of {host!r} cannot be listened at ({reason}); name others with --host and --port."
        ) from error
