"""Models behind HTTP: the command `serve`, whose modules are imported late."""

import argparse
import contextlib
import math
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.serving.limits import Limits
from transformer_jax.system import FieldError, Positive, UserError, check_value, is_loopback
from transformer_jax.system.runtime import show_error

if TYPE_CHECKING:
    from transformer_jax.serving.engine import Engine

TOKEN_VARIABLE = "TRANSFORMER_JAX_TOKEN"  # noqa: S105  (a name)
"""Environment variable with the token; unlike an option, other users of the machine cannot read it."""
PORT = 8000
BACKLOG = 2048
"""Connections that wait to be accepted."""


_LIMITS = {
    "max_characters": "characters of a text",
    "max_lines": "texts of a request",
    "max_beam": "hypotheses of a search, and outputs for a text",
    "max_waiting": "requests waiting for each model; one more is refused with 429",
    "max_streams": "answers streamed at a time; one more is refused with 429",
    "max_bytes": "bytes of the body of a request",
    "body_seconds": "seconds for a body to arrive",
    "gather_ms": "milliseconds at most that a request waits for others to be answered with it",
    "drain_seconds": "seconds for the requests that are being answered when the server is told to stop",
}
"""What the help says of them."""


def add_commands(commands: Any) -> None:
    """Add the subcommand `serve`."""
    parser = commands.add_parser(
        "serve",
        help="answer requests over HTTP",
        description="Answer requests over HTTP with JSON: POST /v1/translate, /v1/classify and /v1/couplets, whichever "
        "the models are for, and GET /healthz, /metrics (Prometheus) and /docs (OpenAPI). Requests of many clients are "
        "answered together. SIGTERM and Ctrl-C end the server after the requests that it has begun.",
        epilog=f"With a token, requests need the header Authorization: Bearer TOKEN, except for /healthz and /docs. "
        f"Without --token it is read from the environment variable {TOKEN_VARIABLE}.",
        example="transformer-jax serve --model runs/numerals --port 8000",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_serve)
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="DIR",
        help="a model folder, or the folder of its run; may be given several times, once for each task",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at [127.0.0.1]")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port; 0: any that is free [{PORT}]")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token", metavar="TOKEN", help="what clients must send; required unless --host is loopback")
    token.add_argument("--no-token", action="store_true", help="accept requests without a token, whatever --host is")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts at a time on each device; changes speed, not results"
    )
    parser.add_argument("--no-warm-up", action="store_true", help="start at once, and compile at the first requests")
    for name, meaning in _LIMITS.items():
        default = getattr(Limits, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{meaning} [{default:,}]" if isinstance(default, int) else f"{meaning} [{default:g}]",
        )


def _serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal.

    Raises:
        UserError: if an option or a model is wrong, or the address is taken.
    """
    limits = _limits(arguments)
    if arguments.batch_size is not None:
        check_value("batch_size", arguments.batch_size, Positive, lambda _: "--batch-size")
    token = _token(arguments)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError("serve needs FastAPI and uvicorn; run pip install 'transformer-jax[serve]'.") from error
    from transformer_jax.serving.api import create_app

    with _bound(arguments.host, arguments.port) as listener:
        engines = load_engines(arguments.model, arguments.batch_size)
        if not arguments.no_warm_up:
            show_error("transformer-jax: compiling")
            for engine in engines:
                engine.warm_up()
        config = uvicorn.Config(
            create_app(engines, limits, token),
            # The same on every system, whatever else is installed; and h11 limits what headers may take.
            http="h11",
            loop="asyncio",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
        )
        server = uvicorn.Server(config)
        # uvicorn handles the others. nohup ignores this one.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        host, port = listener.getsockname()[:2]
        listener.listen(BACKLOG)
        paths = ",".join(engine.service.path for engine in engines)
        at = f"[{host}]" if ":" in host else host
        show_error(f"transformer-jax: serving {paths} on http://{at}:{port} (http://{at}:{port}/docs describes it)")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn shuts down gracefully, and then raises the signal again
            server.run(sockets=[listener])
        show_error("transformer-jax: stopped")


def load_engines(paths: Sequence[str], batch_size: int | None = None) -> "list[Engine]":
    """The models in these folders, each with the service that answers for it.

    Raises:
        UserError: if one cannot be read or served, or two have the same task.
    """
    from transformer_jax.serving.engine import Engine
    from transformer_jax.tasks.command_line import command_for
    from transformer_jax.tasks.model_folder import load, task_of

    found: dict[str, str] = {}
    engines = []
    for path in paths:
        if not path:
            raise UserError("--model is empty; name a file or folder.")
        command = command_for(task_of(path), path)
        if (service := command.service) is None:
            raise UserError(f"{path} holds a model of {command.subject}, which has no service; see docs/serving.md.")
        if service.path in found:
            other = found[service.path]
            raise UserError(f"{other} and {path} would both answer {service.path}; start a server for each.")
        found[service.path] = path
        engines.append(Engine(load(path), service, batch_size=batch_size))
    return engines


def _limits(arguments: argparse.Namespace) -> Limits:
    try:
        return Limits(**{name: getattr(arguments, name) for name in _LIMITS})
    except FieldError as error:
        raise error.named(lambda name: f"--{name.replace('_', '-')}") from None


def _token(arguments: argparse.Namespace) -> str | None:
    """The token that clients must send; None: none is needed.

    Raises:
        UserError: if one is needed, or cannot be sent in a header.
    """
    if arguments.no_token:
        return None
    token: str | None = os.environ.get(TOKEN_VARIABLE) or None if arguments.token is None else arguments.token
    if token is None and not is_loopback(arguments.host):
        raise UserError(
            f"--host {arguments.host} accepts requests from other machines; give --token, or --no-token to accept any."
        )
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise UserError("--token must be printable ASCII without spaces at its ends, or it cannot be sent; change it.")
    return token


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet.

    Raises:
        UserError: if there cannot be one.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}, but must be from 0 to 65,535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Port {port} of {host} cannot be used ({reason}); name another --port or --host.") from error
