"""A server in a thread of the test's process, and a plain client."""

import contextlib
import http.client
import json
import socket
import threading
import time

import uvicorn

from transformer_jax.serving import Limits
from transformer_jax.serving.api import create_app

PATIENCE = 60.0
"""Seconds for anything that takes a moment."""


class Client:
    """A client of the server at a port, with a connection for each request."""

    def __init__(self, port, headers=None):
        self.port = port
        self.headers = {"Content-Type": "application/json"} | (headers or {})

    def ask(self, path, body=None, *, headers=None):
        """(status, headers, content) of a POST of a JSON value or bytes, or of a GET without a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, content, self.headers | (headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def results(self, path, texts, **options):
        status, _, content = self.ask(path, {"texts": texts, **options})
        assert status == 200, content
        return json.loads(content)["results"]

    def refusal(self, path, body, **options):
        """(status, sentence) of a request that is refused."""
        status, _, content = self.ask(path, body, **options)
        found = json.loads(content)
        assert list(found) == ["detail"]
        return status, found["detail"]

    def metric(self, name):
        """The sum of the samples of a metric, whatever their labels."""
        lines = self.ask("/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)

    def begin(self, path, body, *, length=None):
        """A connection on which a request was sent, but no answer read; a body may be cut."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        content = json.dumps(body).encode() if not isinstance(body, bytes) else body
        head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
        connection.sendall(head.encode() + content)
        return connection


@contextlib.contextmanager
def served(engines, token=None, **limits):
    """Run a server with these engines; the value is a client without a token."""
    app = create_app(engines, Limits(**limits), token)
    config = uvicorn.Config(app, http="h11", loop="asyncio", ws="none", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


def until(condition):
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
