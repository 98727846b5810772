import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.servers import PATIENCE, served, until
from tests.tasks.toys import CLASSES, TEXTS
from transformer_jax import load
from transformer_jax.cli import main
from transformer_jax.serving.engine import Engine
from transformer_jax.system import NotNumbersError
from transformer_jax.tasks.couplets.service import SERVICE as COUPLETS
from transformer_jax.tasks.pair_command import PairCommand
from transformer_jax.tasks.translation.service import SERVICE, TranslateRequest

TRANSLATE, CLASSIFY, WRITE = "/v1/translate", "/v1/classify", "/v1/couplets"
UPPERS = ["春风", "天地，红绿", "一二一"]


def command(capfd, name, folder, *arguments):
    assert main([name, "--model", str(folder), *arguments]) == 0
    return capfd.readouterr().out.splitlines()


def test_translations_are_those_of_the_command_line(client, folders, capfd):
    found = client.results(TRANSLATE, TEXTS)
    assert [result["text"] for result in found] == command(capfd, "translate", folders["translate"], "--", *TEXTS)
    assert len({result["text"] for result in found}) > 3
    found = client.results(TRANSLATE, TEXTS[:1], beam=3, n_best=2, alpha=1.0, prefix="a")
    options = ("--beam", "3", "--n-best", "2", "--alpha", "1.0", "--prefix", "a")
    lines = [line.split("\t") for line in command(capfd, "translate", folders["translate"], *options, TEXTS[0])]
    shown = [found[0], *found[0]["alternatives"]]
    assert [each["text"] for each in shown] == [text for *_, text in lines]
    assert [each["score"] for each in shown] == pytest.approx([float(score) for _, score, _ in lines], abs=2e-4)


def test_classes_are_those_of_the_command_line(client, folders, capfd):
    texts = [text for text in TEXTS if text.strip()]
    for options in ({}, {"explain": True}):
        found = client.results(CLASSIFY, texts, **options)
        flags = ["--explain"] * bool(options)
        lines = command(capfd, "classify", folders["classify"], "--json", *flags, "--", *texts)
        for result, line in zip(found, map(json.loads, lines), strict=True):
            assert result["label"] == line["label"]
            assert result["probabilities"] == pytest.approx(line["probabilities"], abs=2e-6)
            assert list(result["probabilities"]) == list(CLASSES)
            if options:
                assert [word["text"] for word in result["words"]] == [word["text"] for word in line["words"]]
                effects = [word["effect"] for word in line["words"]]
                assert [word["effect"] for word in result["words"]] == pytest.approx(effects, abs=2e-4)
            else:
                assert result["words"] is None


def test_lower_lines_are_those_of_the_command_line(client, folders, capfd):
    for options, flags in (
        ({}, ()),
        ({"rules": "length,tones=2,distinct=off"}, ("--rules", "length,tones=2,distinct=off")),
    ):
        found = client.results(WRITE, UPPERS, **options)
        lines = [line.split("\t") for line in command(capfd, "couplet", folders["couplets"], *flags, *UPPERS)]
        assert [result["text"] for result in found] == [text for text, _ in lines]
        assert [len(result["text"]) for result in found] == [len(upper) for upper in UPPERS]
    [found] = client.results(WRITE, UPPERS[:1], n_best=2)
    assert len(found["alternatives"]) == 1
    assert found["gave_up"] == found["alternatives"][0]["gave_up"] == []


def events(content):
    """(name, data) of server-sent events."""
    blocks = [block.splitlines() for block in content.decode().split("\n\n") if block]
    assert all(len(lines) == 2 for lines in blocks)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@pytest.mark.parametrize("options", [{}, {"prefix": "ab"}])
def test_a_streamed_translation_adds_up(client, folders, options):
    status, headers, content = client.ask(TRANSLATE, {"texts": ["cab ab"], "stream": True, **options})
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    *pieces, (last, data) = events(content)
    assert {name for name, _ in pieces} == {"piece"}
    expected = load(folders["translate"]).translate(["cab ab"], beam_size=1, **options)[0]
    assert "".join(piece["text"] for _, piece in pieces) == data["text"] == expected
    assert last == "done"
    assert len(pieces) > 1


LONG = "x" * 201


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (TRANSLATE, {"texts": [LONG]}, 413, "Line 1 has 201 characters, but the limit is 200"),
        (TRANSLATE, {"texts": ["a"], "prefix": LONG}, 413, "prefix has 201 characters"),
        (TRANSLATE, {"texts": ["a"] * 9}, 413, "9 texts, but the limit is 8"),
        (TRANSLATE, {"texts": ["a"], "beam": 5}, 422, "beam is 5, but this server allows at most 4"),
        (TRANSLATE, {"texts": ["a"], "n_best": 5}, 422, "n_best is 5"),
        (TRANSLATE, {"texts": ["a"], "beam": 0}, 422, "beam: "),
        (TRANSLATE, {"texts": ["a"], "beam": "2"}, 422, "beam: "),
        (TRANSLATE, {"texts": ["a"], "beam": 2.5}, 422, "beam: "),
        (TRANSLATE, {"texts": ["a"], "alpha": 0.55}, 422, "alpha: must be a multiple of 0.1"),
        (TRANSLATE, {"texts": ["a"], "alpha": -1}, 422, "alpha: "),
        (TRANSLATE, {"texts": ["a"], "bean": 2}, 422, "did you mean beam?"),
        (TRANSLATE, {"texts": ["a"], "prefix": "ß"}, 422, "vocabulary cannot express"),
        (TRANSLATE, {"texts": ["a", "b"], "stream": True}, 422, "stream answers one text"),
        (TRANSLATE, {"texts": ["a"], "stream": True, "beam": 2}, 422, "stream cannot be combined with beam"),
        (TRANSLATE, {"texts": []}, 422, "texts: "),
        (TRANSLATE, {"texts": "a"}, 422, "texts: "),
        (TRANSLATE, {"texts": ["a", None]}, 422, "texts.1: "),
        (TRANSLATE, b'{"texts": ["\\ud800"]}', 422, "texts.0: must be Unicode"),
        (TRANSLATE, {}, 422, "texts: "),
        (TRANSLATE, [], 422, "JSON object"),
        (TRANSLATE, b"", 422, "JSON object"),
        (TRANSLATE, b"{", 422, "JSON object"),
        (TRANSLATE, b"\xff", 422, "JSON object"),
        (TRANSLATE, b"[" * 19_000, 422, "JSON object"),
        (TRANSLATE, b'{"texts": ["a"], "alpha": NaN}', 422, "alpha: "),
        (TRANSLATE, b'{"texts": ["a"], "beam": 1' + b"0" * 6000 + b"}", 422, ""),
        (TRANSLATE, b" " * 20_001, 413, "larger than 20,000 bytes"),
        (CLASSIFY, {"texts": ["a", " "]}, 422, "Line 2 is blank"),
        (CLASSIFY, {"texts": ["a"], "beam": 2}, 422, "'beam' is not a field"),
        (WRITE, {"texts": ["春风", " "]}, 422, "Line 2 is blank"),
        (WRITE, {"texts": ["春风"], "rules": "rhyme"}, 422, "'rhyme' is not a rule"),
        ("/v1/nothing", {"texts": ["a"]}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_in_a_sentence(client, folders, path, body, status, words):
    found, sentence = client.refusal(path, body)
    assert found == status
    assert words in sentence
    assert "\n" not in sentence
    assert len(sentence) < 250
    assert "/" not in sentence.replace("application/json", "")  # no path
    assert "Traceback" not in sentence


def test_a_form_of_another_site_is_refused(client):
    body = b'{"texts": ["a"]}'
    for kind in ("text/plain", "", "text/plain; a=application/json"):
        assert client.refusal(TRANSLATE, body, headers={"Content-Type": kind})[0] == 422


def test_the_token_is_asked_for(engines):
    with served(engines, token="a secret") as stranger:
        for header in (
            {},
            {"Authorization": "a secret"},
            {"Authorization": "Bearer a secre"},
            {"Authorization": "Bearer é"},
        ):
            for path, body in ((TRANSLATE, {"texts": ["a"]}), ("/metrics", None), ("/v1/nothing", None)):
                status, headers, content = stranger.ask(path, body, headers=header)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert "token" in json.loads(content)["detail"]
        assert stranger.ask("/healthz")[0] == 200
        known = {"Authorization": "Bearer a secret"}
        assert stranger.ask(TRANSLATE, {"texts": ["a"]}, headers=known)[0] == 200
        assert stranger.ask("/metrics", headers=known)[0] == 200


def test_the_page_describes_what_is_served(client):
    assert client.ask("/docs")[0] == 200
    description = json.loads(client.ask("/openapi.json")[2])
    assert {TRANSLATE, CLASSIFY, WRITE, "/healthz", "/metrics"} <= set(description["paths"])
    fields = description["components"]["schemas"]["TranslateRequest"]["properties"]
    assert set(fields) == {"texts", "beam", "n_best", "alpha", "prefix", "stream"}
    assert all("description" in field for field in fields.values())
    refusals = {int(status) for status in description["paths"][TRANSLATE]["post"]["responses"]}
    assert refusals == {200, 401, 408, 413, 422, 429, 503}


def test_requests_are_counted(engines):
    with served(engines) as client:
        client.results(TRANSLATE, ["a", "b"])
        client.refusal(TRANSLATE, [])
        text = client.ask("/metrics")[2].decode()
        assert f'transformer_jax_requests_total{{path="{TRANSLATE}",status="200"}} 1.0' in text
        assert f'transformer_jax_requests_total{{path="{TRANSLATE}",status="422"}} 1.0' in text
        assert client.metric("transformer_jax_texts_total") == 2
        assert client.metric("transformer_jax_batch_requests_sum") == 1
        assert client.metric("transformer_jax_waiting_requests") == 0


class Held:
    """Stands in for a translator: waits until it is free, then answers a text by itself; notes its calls."""

    def __init__(self):
        self.calls, self.free, self.streamed = [], threading.Event(), []

    def check(self, texts, prefix=None):
        pass

    def search(self, texts, **options):
        self.calls.append(list(texts))
        assert self.free.wait(PATIENCE)
        if "broken" in texts:
            raise ValueError("in /home/somebody/model")
        if "damaged" in texts:
            raise NotNumbersError
        return [[type("Output", (), {"text": text, "score": 0.0})] for text in texts]

    def stream(self, text, prefix=None):
        for piece in range(10_000):
            assert self.free.wait(PATIENCE)
            self.streamed.append(piece)
            yield "a"


@pytest.fixture
def held():
    return Held()


def one(text):
    return {"texts": [text]}


def test_many_clients_are_answered_together(held):
    with served([Engine(held, SERVICE)]) as client, ThreadPoolExecutor(9) as threads:
        first = threads.submit(client.results, TRANSLATE, ["first"])
        until(lambda: held.calls)
        others = [threads.submit(client.results, TRANSLATE, [f"{number}", "x"]) for number in range(8)]
        until(lambda: client.metric("transformer_jax_waiting_requests") == 8)
        held.free.set()
        assert first.result(PATIENCE)[0]["text"] == "first"
        assert [[each["text"] for each in future.result(PATIENCE)] for future in others] == [
            [f"{number}", "x"] for number in range(8)
        ]
    assert [len(call) for call in held.calls] == [1, 16]


def test_one_too_many_is_sent_away_and_who_hangs_up_makes_room(held):
    with served([Engine(held, SERVICE)], max_waiting=2) as client, ThreadPoolExecutor(2) as threads:
        first = threads.submit(client.results, TRANSLATE, ["first"])
        until(lambda: held.calls)
        leaving, staying = client.begin(TRANSLATE, one("leaving")), client.begin(TRANSLATE, one("staying"))
        until(lambda: client.metric("transformer_jax_waiting_requests") == 2)
        status, headers, content = client.ask(TRANSLATE, one("too many"))
        assert (status, headers["retry-after"]) == (429, "1")
        assert "try again" in json.loads(content)["detail"]
        leaving.close()
        until(lambda: client.metric("transformer_jax_waiting_requests") == 1)
        coming = threads.submit(client.results, TRANSLATE, ["coming"])
        until(lambda: client.metric("transformer_jax_waiting_requests") == 2)
        held.free.set()
        assert first.result(PATIENCE)
        assert coming.result(PATIENCE)
        assert staying.recv(12) == b"HTTP/1.1 200"
        staying.close()
        assert 'status="499"} 1.0' in client.ask("/metrics")[2].decode()
    assert sorted(text for call in held.calls for text in call) == ["coming", "first", "staying"]


def test_failures_are_not_explained_to_clients_and_spoil_nobody_else(held):
    with served([Engine(held, SERVICE)]) as client, ThreadPoolExecutor(4) as threads:
        first = threads.submit(client.results, TRANSLATE, ["first"])
        until(lambda: held.calls)
        broken, good, damaged = (
            threads.submit(client.ask, TRANSLATE, one(text)) for text in ("broken", "good", "damaged")
        )
        until(lambda: client.metric("transformer_jax_waiting_requests") == 3)
        held.free.set()
        assert first.result(PATIENCE)
        assert good.result(PATIENCE)[0] == 200
        for bad in (broken, damaged):
            status, _, content = bad.result(PATIENCE)
            assert status == 500
            assert json.loads(content)["detail"] == "The server failed to answer; its log has the reason."
        assert 'status="500"} 2.0' in client.ask("/metrics")[2].decode()


def test_what_was_begun_is_answered_at_the_end(held):
    with ThreadPoolExecutor(2) as threads:
        with served([Engine(held, SERVICE)]) as client:
            asked = [threads.submit(client.results, TRANSLATE, [text]) for text in ("a", "b")]
            until(lambda: held.calls)
            until(lambda: client.metric("transformer_jax_waiting_requests") == 1 or len(held.calls[0]) == 2)
            threading.Timer(0.3, held.free.set).start()  # while the server ends
        assert [future.result(PATIENCE)[0]["text"] for future in asked] == ["a", "b"]


def test_streams_have_places_too(held):
    body = {"texts": ["a"], "stream": True}
    with served([Engine(held, SERVICE)], max_streams=1) as client:

        def is_streamed():
            with client.begin(TRANSLATE, body) as connection:
                return connection.recv(12) == b"HTTP/1.1 200"

        streaming = client.begin(TRANSLATE, body)
        assert streaming.recv(12) == b"HTTP/1.1 200"
        assert client.refusal(TRANSLATE, body)[0] == 429
        streaming.close()
        held.free.set()
        until(is_streamed)
        assert len(held.streamed) < 10_000  # nobody reads the rest


def test_a_slow_body_is_not_waited_for(engines):
    with served(engines, body_seconds=0.2) as client:
        connection = client.begin(TRANSLATE, b'{"texts"', length=100)
        assert connection.recv(12) == b"HTTP/1.1 408"
        connection.close()


def test_memory_of_programs_is_bounded(monkeypatch, held):
    cleared = []
    monkeypatch.setattr("transformer_jax.serving.engine.jax.clear_caches", lambda: cleared.append(1))
    monkeypatch.setattr("transformer_jax.serving.engine.MOST_SEARCHES", 3)
    held.free.set()
    engine = Engine(held, SERVICE)
    for beam in (1, 2, 3, 1, 2, 3):
        engine.answer([TranslateRequest(texts=["a"], beam=beam)])
    assert not cleared
    engine.answer([TranslateRequest(texts=["a"], beam=4, prefix="b")])
    engine.answer([TranslateRequest(texts=["a"], beam=4, prefix="c")])
    assert len(cleared) == 1


def test_a_task_of_ones_own_is_served_under_the_name_of_its_command(held):
    held.free.set()
    service = PairCommand("reverse", "spell backwards").service
    with served([Engine(held, service)]) as client:
        assert client.results("/v1/reverse", ["ab", "c"])[1] == {"text": "c", "score": 0.0, "alternatives": []}
        assert client.refusal("/v1/reverse", {"texts": ["a"], "prefix": "b"})[0] == 422


def test_the_first_searches_are_for_one_text_and_for_many_of_several_lengths(held):
    held.free.set()
    engine = Engine(held, SERVICE)
    engine.warm_up()
    assert sorted({len(call) for call in held.calls}) == [1, 8, 64]
    assert len({len(call[0]) for call in held.calls}) == 3
    assert all(len(set(call)) == 1 for call in held.calls)


def test_a_sample_is_accepted_by_each_model(engines):
    for engine in engines:
        engine.check(engine.service.request(texts=[engine.service.sample]))
    assert COUPLETS.sample != SERVICE.sample
