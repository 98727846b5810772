"""The app: endpoints of the served models, health, metrics and the OpenAPI page, with every refusal as one sentence."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

import fastapi
import prometheus_client
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException

from transformer_jax.serving.batching import Batcher, Closed, Full
from transformer_jax.serving.engine import Engine
from transformer_jax.serving.gate import CLIENT_GONE, NOT_JSON, Gate, path_of
from transformer_jax.serving.limits import Limits
from transformer_jax.system import NotNumbersError, UserError, known_names, package_version
from transformer_jax.system.runtime import printable
from transformer_jax.tasks.service import Request, check_width

Result = TypeVar("Result", bound=BaseModel)

RETRY_SECONDS = "1"
CLOSE_SECONDS = 2.0
"""Until a search whose clients are gone is left to the end of the process."""
FAILED = "The server failed to answer; its log has the reason."
FULL = "The server has as many requests as it takes; try again later."
CLOSED = "The server is being shut down; try again later."


class Results(BaseModel, Generic[Result]):
    """The answer to a request."""

    results: list[Result]
    """One for each text, in order."""


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The token is missing or wrong."},
    408: {"model": Problem, "description": "The body came too slowly."},
    413: {"model": Problem, "description": "Too many characters, texts or bytes."},
    422: {"model": Problem, "description": "A field is wrong, or the model cannot take a text."},
    429: {"model": Problem, "description": "Too many requests wait; Retry-After says when to try again."},
    503: {"model": Problem, "description": "The server is being shut down."},
}


class _Metrics:
    """What /metrics shows."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._paths = {engine.service.path for engine in engines}

        def counter(name: str, text: str, labels: Sequence[str]) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"transformer_jax_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> prometheus_client.Histogram:
            return prometheus_client.Histogram(
                f"transformer_jax_{name}", text, ["path"], registry=self.registry, buckets=buckets
            )

        self._requests = counter("requests", "Requests by status; 499: the client hung up.", ["path", "status"])
        self._texts = counter("texts", "Texts answered.", ["path"])
        seconds = [0.005 * 2**power for power in range(14)]
        self._seconds = histogram(
            "request_seconds", "From the first byte of a request to the last of its answer.", seconds
        )
        self._batch_seconds = histogram("batch_seconds", "Of one call of the model.", seconds)
        self._batch_requests = histogram(
            "batch_requests", "Requests answered by one call of the model.", [2.0**power for power in range(9)]
        )
        self._waiting = prometheus_client.Gauge(
            "transformer_jax_waiting_requests", "Requests that wait for the model.", ["path"], registry=self.registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in self._paths else "other"
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, path: str) -> Callable[[int, int, float], None]:
        """Counts batches of that path; see `Batcher`."""

        def count(requests: int, texts: int, seconds: float) -> None:
            self._texts.labels(path).inc(texts)
            self._batch_requests.labels(path).observe(requests)
            self._batch_seconds.labels(path).observe(seconds)

        return count

    def watch(self, path: str, batcher: Batcher[Request, list[BaseModel]]) -> None:
        """Show how many requests wait there."""
        self._waiting.labels(path).set_function(lambda: batcher.waiting)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return prometheus_client.generate_latest(self.registry)


def create_app(
    engines: Sequence[Engine], limits: Limits, token: str | None = None, *, most_texts: int = 512
) -> fastapi.FastAPI:
    """An app that answers with these models until its lifespan ends.

    Args:
        engines: no two of one path.
        limits: of requests.
        token: that clients must send; None: anybody may ask.
        most_texts: texts that are answered together, unless one request has more.
    """
    metrics = _Metrics(engines)
    batchers = [_batcher(engine, limits, metrics, most_texts) for engine in engines]

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        # The server has let requests end by now, within its own time.
        await asyncio.gather(*(run_in_threadpool(batcher.close, CLOSE_SECONDS) for batcher in batchers))

    app = fastapi.FastAPI(title="transformer-jax serve", version=package_version(), lifespan=lifespan, redoc_url=None)
    app.add_middleware(Gate, limits=limits, token=token, report=metrics.request)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    app.state.fields = {engine.service.path: list(engine.service.request.model_fields) for engine in engines}
    streams = _Slots(limits.max_streams)
    for engine, batcher in zip(engines, batchers, strict=True):
        _add_endpoint(app, engine, batcher, streams, limits)

    @app.get("/healthz", summary="whether the server answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="figures in Prometheus's text format", response_class=Response)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _batcher(engine: Engine, limits: Limits, metrics: _Metrics, most_texts: int) -> Batcher[Request, list[BaseModel]]:
    path = engine.service.path
    batcher: Batcher[Request, list[BaseModel]] = Batcher(
        engine.answer,
        key=engine.key,
        size=lambda request: len(request.texts),
        max_waiting=limits.max_waiting,
        gather=limits.gather_ms / 1000,
        most=most_texts,
        report=metrics.batch(path),
    )
    metrics.watch(path, batcher)
    return batcher


class _Slots:
    """A semaphore that refuses instead of waiting; for the event loop only."""

    def __init__(self, count: int) -> None:
        self._free = count

    def acquire(self) -> None:
        if not self._free:
            raise Full
        self._free -= 1

    def release(self) -> None:
        self._free += 1


def _add_endpoint(
    app: fastapi.FastAPI,
    engine: Engine,
    batcher: Batcher[Request, list[BaseModel]],
    streams: _Slots,
    limits: Limits,
) -> None:
    service = engine.service
    kind: Any = service.request

    async def answer(body: kind, http: fastapi.Request) -> Response:
        request: Request = body
        _check_size(request, limits)
        try:
            check_width(request, limits.max_beam)
            await run_in_threadpool(engine.check, request)
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        try:
            if request.streams:
                streams.acquire()
                return _Stream(engine, request, streams)
            future = batcher.submit(request)
        except Full:
            raise HTTPException(429, FULL, {"Retry-After": RETRY_SECONDS}) from None
        except Closed:
            raise HTTPException(503, CLOSED, {"Retry-After": RETRY_SECONDS}) from None
        try:
            results = await _unless_gone(asyncio.wrap_future(future), http)
        except NotNumbersError:  # not the client's mistake
            raise
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        if results is None:
            return Response(status_code=CLIENT_GONE)
        return Response(Results[Any](results=results).model_dump_json(), media_type="application/json")

    app.post(
        service.path,
        summary=service.summary,
        response_model=Results[service.result],  # type: ignore[name-defined]
        responses=REFUSALS,
    )(answer)


async def _unless_gone(answer: "asyncio.Future[Any]", http: fastapi.Request) -> Any:
    """The answer; None, and it is cancelled, if the client hangs up first."""

    async def hung_up() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return None
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


class _Stream(StreamingResponse):
    """The answer to a request as server-sent events; frees its slot at the end, or when the client hangs up."""

    def __init__(self, engine: Engine, request: Request, slots: _Slots) -> None:
        super().__init__(_events(engine, request), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self._slots = slots

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:
            self._slots.release()


async def _events(engine: Engine, request: Request) -> AsyncIterator[str]:
    """A piece each, at the end the whole text, or why there is none."""
    text = ""
    try:
        async for piece in iterate_in_threadpool(engine.pieces(request)):
            text += piece
            yield _event("piece", {"text": piece})
        yield _event("done", {"text": text})
    except Exception:
        yield _event("error", {"detail": FAILED})
        raise


def _event(name: str, data: dict[str, str]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _check_size(request: Request, limits: Limits) -> None:
    """Refuse what is too long.

    Raises:
        HTTPException: 413.
    """
    if len(request.texts) > limits.max_lines:
        found, most = len(request.texts), limits.max_lines
        raise HTTPException(413, f"The request has {found:,} texts, but the limit is {most:,}; send fewer in each.")
    texts = [(f"Line {number:,}", text) for number, text in enumerate(request.texts, start=1)]
    others = [(name, value) for name, value in request.options.items() if isinstance(value, str)]
    for name, text in texts + others:
        if len(text) > limits.max_characters:
            most = limits.max_characters
            raise HTTPException(413, f"{name} has {len(text):,} characters, but the limit is {most:,}; split it.")


# Every refusal is an object with one sentence.


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


async def _invalid(http: fastapi.Request, error: Any) -> Response:
    return _problem(422, _sentence(error.errors()[0], http.app.state.fields.get(path_of(http.scope), ())))


def _sentence(error: Any, fields: Sequence[str]) -> str:
    """What is wrong with a field, without what the client sent as its value."""
    place = [str(part) for part in error["loc"] if part != "body"]
    if (not place and error["type"] != "value_error") or error["type"] == "json_invalid":
        return NOT_JSON
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    if not place:
        return f"{message}."
    name = printable(".".join(place))[:60]
    if error["type"] == "extra_forbidden":
        return f"{name!r} is not a field; {known_names(name, fields)}"
    return f"{name}: {message[:1].lower()}{message[1:]}."


async def _http_error(http: fastapi.Request, error: Any) -> Response:
    if error.status_code == 400:  # a body that cannot be parsed
        return _problem(422, NOT_JSON)
    return _problem(error.status_code, str(error.detail), error.headers)


async def _failed(http: fastapi.Request, error: Exception) -> Response:
    return _problem(500, FAILED)
