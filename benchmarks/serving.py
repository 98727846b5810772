"""`serving`: requests a second and latency of `transformer-jax serve`, beside other ways behind the same app."""

import asyncio
import contextlib
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.decode import TEST_SET, _model
from benchmarks.results import OURS, Record, compare, device_name
from benchmarks.settings import Settings, Unavailable
from benchmarks.translators import export_all
from benchmarks.workers import Worker, alternate, workers
from transformer_jax.data.readers import read_lines

CLIENTS = (1, 8, 64)
SECONDS = 10.0
"""Of each load; 2 with --quick."""
PATH = "/v1/translate"
PEERS = ("one_at_a_time", "ctranslate2")
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n".encode()
WARM_UPS = 10
"""Rounds at most before the measurement, until no request takes much longer than the others."""
TEXTS = 256
"""Distinct sentences that clients ask for."""


class Load(NamedTuple):
    """What clients saw."""

    requests_per_second: float
    milliseconds: list[float]
    """Of each request."""


def run(settings: Settings) -> Iterator[Record]:
    """Rates and latencies by number of clients, each of which asks for one sentence after the other.

    Raises:
        Unavailable: if the data is missing, or other systems cannot run the model.
    """
    lines = read_lines(settings.folder("multi30k") / TEST_SET)
    texts = random.Random(0).sample(lines, TEXTS)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, origin = _model(settings, scratch)
        with Worker(export_all, model, scratch, threads=settings.threads) as worker:
            worker.measure()
        seconds = 2.0 if settings.quick else SECONDS
        factories = {
            name: (clients_of, name, model, scratch, texts, seconds, settings.threads) for name in (OURS, *PEERS)
        }
        engines = stack.enter_context(workers(factories, threads=settings.threads))
        found = alternate(engines, 1 if settings.quick else 5)
    work = (
        f"sentences of {TEST_SET}, one in each request, beam 4, float32; {origin}; all behind the same FastAPI app; "
        f"clients ask again at once, for {seconds:g} s, and share the machine with the server"
    )
    yield from records(found, work, device_name(settings.threads))


def records(found: dict[str, list[dict[int, Load]]], work: str, device: str) -> Iterator[Record]:
    """The records of the loads of each system, by number of clients."""
    for clients in CLIENTS:
        loads = {name: [rounds[clients] for rounds in repetitions] for name, repetitions in found.items()}
        subject = f"{clients} client{'s' * (clients > 1)}"
        yield from compare(
            "serving",
            subject,
            "requests/s",
            {name: [load.requests_per_second for load in each] for name, each in loads.items()},
            work=work,
            device=device,
            more_is_better=True,
        )
        for what, share in (("median", 0.5), ("99th percentile", 0.99)):
            yield from compare(
                "serving",
                f"{subject}, latency, {what}",
                "ms",
                {name: [percentile(load.milliseconds, share) for load in each] for name, each in loads.items()},
                work=work,
                device=device,
                more_is_better=False,
            )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def clients_of(
    name: str, model: Path, exports: Path, texts: list[str], seconds: float, threads: int
) -> Callable[[], dict[int, Load]]:
    """Factory for a worker: starts a server of that kind, and loads it from this process.

    Raises:
        Unavailable: if the server lacks a package.
    """
    command = [sys.executable, "-m", "benchmarks.servers", name, str(model), str(exports), str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    said = json.loads(server.stdout.readline() or '{"unavailable": "the server did not start"}')
    if "unavailable" in said:
        raise Unavailable(said["unavailable"])

    def measure() -> dict[int, Load]:
        return {clients: asyncio.run(load(said["port"], clients, texts, seconds)) for clients in CLIENTS}

    for _ in range(WARM_UPS):
        if not any(max(found.milliseconds) > 10 * percentile(found.milliseconds, 0.5) for found in measure().values()):
            break  # nothing was compiled meanwhile
    return measure


async def load(port: int, clients: int, texts: Sequence[str], seconds: float) -> Load:
    """Ask from that many connections at a time, on each one request after the other."""
    milliseconds: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for text in itertools.islice(itertools.cycle(texts), number * len(texts) // clients, None):
                asked = time.perf_counter()
                if asked - started > seconds:
                    break
                body = json.dumps({"texts": [text], "beam": 4}).encode()
                writer.write(HEAD % len(body) + body)
                status = await reader.readline()
                if b" 200 " not in status:
                    raise RuntimeError(f"The server answered {status!r}.")
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
                milliseconds.append(1000 * (time.perf_counter() - asked))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    await asyncio.gather(*map(client, range(clients)))
    return Load(len(milliseconds) / (time.perf_counter() - started), milliseconds)
