"""Thousands of requests, a tenth of them hostile: every one is answered or cut off, the good ones as they should be."""

import contextlib
import http.client
import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.servers import PATIENCE, served, until
from tests.tasks.toys import TEXTS
from transformer_jax import load

CLIENTS = 8
BATCH = 100
GROWTH = 48 << 20
"""Bytes that memory may grow by after the first requests; an unfreed tenth of the long bodies alone would be more."""
LONG = 10_000_000
PATH = "/v1/translate"


def expected(folders):
    """Good requests of all kinds, with the outputs of the library."""
    translator, classifier, writer = (load(folder) for folder in folders.values())
    texts = [text for text in TEXTS if text.strip()]
    uppers = ["春风", "天地，红绿"]
    return [
        *((PATH, {"texts": [text]}, translator.translate([text])) for text in TEXTS),
        *((PATH, {"texts": TEXTS[:k]}, translator.translate(TEXTS[:k])) for k in (2, 5)),
        *(("/v1/classify", {"texts": [text]}, [classifier.classify([text])[0].label]) for text in texts),
        *(("/v1/couplets", {"texts": [upper]}, writer.reply([upper])) for upper in uppers),
    ]


# Each hostile request takes a port and a random generator, and returns the status, or None if it read none.


def post(port, body, headers=None, path=PATH):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        content = response.read()
    assert b"Traceback" not in content
    assert b"/home" not in content
    assert b".py" not in content
    return response.status


def raw(port, content, *, read=True):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(content)
        if not read:
            return None
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(65_536)
            return int(answer.split()[1]) if answer else None
    return None


def wrong_type(port, rng):
    wrong = rng.choice([None, 1, 1.5, True, "abc", {}, [1], [None], [["a"]], [{}], {"a": "b"}])
    return post(port, json.dumps(rng.choice([{"texts": wrong}, wrong, {"texts": ["a"], "beam": [wrong]}])).encode())


def random_bytes(port, rng):
    return post(port, rng.randbytes(rng.randrange(1, 2000)))


def long_body(port, rng):
    return post(port, b'{"texts": ["' + b"a" * LONG + b'"]}')


def chunked_body(port, rng):
    return post(port, iter([b'{"texts": ["'] + [b"a" * 100_000] * 20))


def controls(port, rng):
    text = "".join(chr(rng.choice([*range(32), 127, 0x202E, 0xFEFF, 0xFFFF, 0x10FFFF])) for _ in range(10))
    return post(port, json.dumps({"texts": [text], rng.choice(["prefix", "beam", text]): text}).encode())


def surrogates(port, rng):
    return post(port, b'{"texts": ["\\ud800\\udbff"]}')


def deep(port, rng):
    return post(port, b'{"texts": ' + b"[" * 100_000)


def huge_number(port, rng):
    return post(port, b'{"texts": ["a"], "beam": ' + b"9" * rng.choice([5, 400, 9000]) + b"}")


def cut_body(port, rng):
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    return raw(port, head.encode() + b'{"texts": ["a', read=False)


def cut_answer(port, rng):
    body = json.dumps({"texts": TEXTS[:3], "stream": rng.random() < 0.1}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return raw(port, head.encode() + body, read=False)


def not_http(port, rng):
    return raw(port, rng.choice([b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\r\n" * 10 + b"a\r\n\r\n"]))


def long_header(port, rng):
    return raw(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")


HOSTILE = (wrong_type, random_bytes, long_body, chunked_body, controls, surrogates, deep, huge_number, cut_body)
HOSTILE = (*HOSTILE, cut_answer, not_http, long_header)
STATUSES = {
    long_body: {413},
    chunked_body: {413},
    surrogates: {422},
    deep: {422},
    huge_number: {422},
    wrong_type: {422},
    random_bytes: {422},
    controls: {422},
    cut_body: {None},
    cut_answer: {None},
    not_http: {400, None},
    long_header: {400, None},
}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def one(port, number, good):
    """Send request `number`; what went wrong, or nothing."""
    rng = random.Random(number)
    if number < len(HOSTILE) or rng.random() < 0.1:
        kind = HOSTILE[number % len(HOSTILE)]
        status = kind(port, rng)
        return None if status in STATUSES[kind] else (kind.__name__, status)
    path, body, outputs = rng.choice(good)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        results = json.loads(response.read()).get("results", [])
    found = [result.get("text", result.get("label")) for result in results]
    return None if found == outputs else (path, body, response.status, found)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_good_requests_are_answered_among_hostile_ones_and_memory_is_flat(engines, folders, count):
    good = expected(folders)
    threads_before = threading.active_count()
    with served(engines) as client, ThreadPoolExecutor(CLIENTS) as threads:
        after_first = 0
        for first in range(0, count, BATCH):
            numbers = range(first, first + BATCH)
            wrong = [each for each in threads.map(lambda number: one(client.port, number, good), numbers) if each]
            assert wrong == []
            after_first = after_first or resident()
        assert resident() - after_first < GROWTH
        until(lambda: client.metric("transformer_jax_waiting_requests") == 0)
        assert client.ask("/healthz")[0] == 200
        sent = client.metric("transformer_jax_requests_total")
        assert sent > 0.9 * count
    until(lambda: threading.active_count() <= threads_before + 40)  # those that the event loop keeps
