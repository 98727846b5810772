"""What every request passes before the app reads it: the token, the size of the body, and the time it takes to come."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from transformer_jax.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

NOT_JSON = "The body must be a JSON object with the field texts, sent with Content-Type: application/json."
OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")
"""Answered without a token: none says anything about models or requests."""
DISCARDED_BYTES = 64 << 20
"""Of a body that is too long: many clients read no answer before they have sent all."""
CLIENT_GONE = 499
"""Counted as the status of a request whose client hung up; nobody is sent it."""


_CLOSE = ((b"connection", b"close"),)
"""After a body that was not read to its end: the rest of it would keep the connection open."""


def path_of(scope: MutableMapping[str, Any]) -> str:
    """The path of a request within the app, which may be mounted in another."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class _Refused(Exception):
    def __init__(self, status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers


class _Gone(Exception):
    """The client has hung up."""


class Gate:
    """An ASGI app around another: refuses requests without the token (401), and long (413) or slow bodies (408)."""

    def __init__(self, app: App, limits: Limits, token: str | None, report: Callable[[str, int, float], None]) -> None:
        """Wrap an app.

        Args:
            app: reads bodies whole.
            limits: of the body.
            token: that requests must have; None: anybody may ask.
            report: called with the path, the status and the seconds of each request.
        """
        self._app, self._limits, self._report = app, limits, report
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            try:
                refusal = self._refusal(scope, headers)
                # Clients that ask whether to send a body get the answer at once.
                if refusal is None or headers.get(b"expect", b"").lower() != b"100-continue":
                    body = await self._body(receive, keeps=refusal is None)
                else:
                    refusal.headers += _CLOSE
                if refusal is not None:
                    raise refusal
            except _Refused as error:
                await _refuse(noted, error)
            else:
                await self._app(scope, _replayed(body, receive), noted)
        except _Gone:
            pass
        except Exception:
            status = 500
            raise
        finally:
            self._report(path_of(scope), status, time.perf_counter() - started)

    def _refusal(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> _Refused | None:
        given, expected = headers.get(b"authorization", b""), self._expected
        if expected is not None and path_of(scope) not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            detail = "The token is missing or wrong; send the header Authorization: Bearer TOKEN."
            return _Refused(401, detail, ((b"www-authenticate", b"Bearer"),))
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._limits.max_bytes:
            return self._too_long()
        # Pages of other sites can make a browser send any other type without asking.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            return _Refused(422, NOT_JSON)
        return None

    def _too_long(self) -> _Refused:
        return _Refused(
            413, f"The body is larger than {self._limits.max_bytes:,} bytes; send fewer texts in each request.", _CLOSE
        )

    async def _body(self, receive: Receive, *, keeps: bool) -> bytes:
        """The body, whole; or, of a request that is refused anyway, read and not kept.

        Raises:
            _Refused: if it is too long, or comes too slowly.
            _Gone: if the client hangs up.
        """
        parts: list[bytes] = []
        size, most = 0, self._limits.max_bytes if keeps else 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    if not message.get("more_body", False) or size > max(most, DISCARDED_BYTES):
                        break
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise _Refused(408, f"The body has not come within {seconds} seconds; send it again.", _CLOSE) from None
        if keeps and size > most:
            raise self._too_long()
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read: the body, then what comes after it."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, error: _Refused) -> None:
    content = json.dumps({"detail": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": [*headers, *error.headers]})
    await send({"type": "http.response.body", "body": content})
