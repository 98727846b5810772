"""The page as it is served, and the command: what it loads and refuses, and answers to several visitors at once."""

import concurrent.futures
import html
import importlib.util
import json
import re
import socket
import uuid
from pathlib import Path

import pytest

from tests.demo.served import serving, write_models
from tests.tasks.toys import write_stacks
from transformer_jax import demo
from transformer_jax.cli import main
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load

pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[demo]'")
httpx = pytest.importorskip("httpx", reason="httpx is not installed, which comes with Gradio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("secret")


@pytest.fixture(scope="module")
def models(folder):
    return {path.name: load(path) for path in write_models(folder)}


@pytest.fixture(scope="module")
def address(folder, models):
    # A process of its own: Gradio leaves event loops open, of which the tests' filter of warnings makes errors.
    with serving([folder / name for name in models]) as found:
        yield found


@pytest.fixture(scope="module")
def config(address):
    return get(f"{address}/config").json()


def get(url, **options):
    return httpx.get(url, trust_env=False, timeout=60, **options)


def post(url, **options):
    return httpx.post(url, trust_env=False, timeout=60, **options)


def ask(address, config, button, data, language="en"):
    """What the handler of a button answers to a visitor."""
    [asking] = [
        component["id"]
        for component in config["components"]
        if component["type"] == "button" and f'"{button}.ask"' in component["props"]["value"]
    ]
    [number] = [each["id"] for each in config["dependencies"] if [asking, "click"] in each["targets"]]
    session, headers = uuid.uuid4().hex, {"accept-language": language}
    body = {"data": data, "fn_index": number, "session_hash": session}
    assert post(f"{address}/gradio_api/queue/join", json=body, headers=headers).status_code == 200
    url = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", url, trust_env=False, timeout=300) as events:
        for line in events.iter_lines():
            if line.startswith("data: ") and (event := json.loads(line[6:]))["msg"] == "process_completed":
                return event
    raise AssertionError("the stream ends without an answer")


def test_models_that_are_used_alike_share_a_tab(config):
    assert [each["type"] for each in config["components"]].count("tabitem") == 3
    named = [each["props"]["choices"] for each in config["components"] if each["type"] == "dropdown"]
    assert [[name for name, _ in choices] for choices in named] == [["toy", "other"], ["classes"], ["couplets"]]


def test_every_label_has_words_in_both_languages(config):
    shown = json.dumps(config["components"]).replace('\\"', '"')
    used = set(re.findall(r'__i18n__{"__type__": "translation_metadata", "key": "(.*?)"}', shown))
    assert {"translate.ask", "classify.explain", "couplet.tones", "note"} <= used
    for locale in ("en", "zh", "zh-CN", "zh-TW"):
        assert used <= set(config["i18n_translations"][locale])
    assert config["i18n_translations"]["en"]["translate.ask"] == "Translate"
    assert config["i18n_translations"]["zh-CN"]["translate.ask"] == "翻译"


def test_it_loads_nothing_from_elsewhere(address, config):
    shown = get(f"{address}/")
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="([^"]+)"', shown.text)
    assert len(loaded) > 2
    assert not [url for url in loaded if "//" in url and not url.startswith(address)]
    style = get(f"{address}/theme.css").text
    assert "system-ui" in style
    assert not [
        url for url in re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", style) if not url.startswith("data:")
    ]
    policy = shown.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert not config["analytics_enabled"]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file={secret}/toy/model/config.json",
        "file={secret}/toy/model/config.json",
        "gradio_api/file/{secret}/toy/model/config.json",
        "gradio_api/proxy=http://127.0.0.1",
        "static/" + 20 * "%2e%2e/" + "{secret}/toy/model/config.json",
        "gradio_api/vibe-code/",
        "gradio_api/openapi.json",
        "monitoring",
    ],
)
def test_no_file_of_this_machine_is_served(address, folder, path):
    assert (folder / "toy" / "model" / "config.json").exists()
    found = get(f"{address}/{path.format(secret=folder)}")
    assert found.status_code in (403, 404)
    assert "format_version" not in found.text


def test_no_path_is_told(address, folder):
    for path in ("", "config", "gradio_api/info"):
        assert folder.name not in get(f"{address}/{path}").text


def test_uploads_and_what_is_too_large_are_refused(address):
    assert post(f"{address}/gradio_api/upload", files={"files": b"x"}).status_code == 404
    join = f"{address}/gradio_api/queue/join"
    chunked = {"content-length": "2", "transfer-encoding": "chunked"}
    assert post(join, content=iter([b"{}"]), headers=chunked).status_code in (400, 411)
    assert post(join, content=b" " * 10_000_001).status_code == 413
    assert post(join, content=iter([b"{}"])).status_code == 411


def test_two_visitors_at_once_have_their_own_answers(address, config, models):
    texts = ["abc", "cab ab", "Bad", "decade"] * 2

    def visit(text):
        return ask(address, config, "translate", ["toy", text, 1, 2, 0.6])

    with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(visit, texts))
    for text, answer in zip(texts, answers, strict=True):
        content, message = answer["output"]["data"]
        [expected] = models["toy"].translate([text], beam_size=2, alpha=0.6)
        assert message == ""
        assert html.unescape(re.findall(r'class="text">(.*?)</span>', content)[0]) == expected


def test_every_task_answers(address, config):
    content, _ = ask(address, config, "classify", ["classes", "abc", True])["output"]["data"]
    assert "bars" in content
    content, _ = ask(address, config, "couplet", ["couplets", "春风", 2, *[True] * 5], "zh-CN")["output"]["data"]
    assert "上联" in content
    content, message = ask(address, config, "translate", ["toy", "a" * 30, 1, 2, 0.6])["output"]["data"]
    assert content == ""
    assert "The text has 31 tokens" in message


@pytest.mark.parametrize(
    "data", [["toy", "abc", 1, 10**6, 0.6], ["none", "abc", 1, 1, 0.6], ["toy", 7, 1, 1, 0.6], ["toy"], "abc"]
)
def test_what_no_control_sends_is_refused_without_a_trace(address, config, data):
    if isinstance(data, str):
        body = {"data": data, "fn_index": 0, "session_hash": "x"}
        assert post(f"{address}/gradio_api/queue/join", json=body).status_code == 422
        return
    answer = ask(address, config, "translate", data)
    # Gradio makes a text of a number.
    assert 7 in data or not answer["success"] or answer["output"]["data"][0] == ""
    text = json.dumps(answer)
    assert "Traceback" not in text
    assert ".py" not in text


def test_models_without_a_tab_and_none_at_all_are_refused(tmp_path, models):
    with pytest.raises(UserError, match="The page has no model; name at least one"):
        demo.build({})
    stacks = load(write_stacks(tmp_path / "stacks"))
    with pytest.raises(UserError, match="stacks is a TransformerStacks, which the page has no tab for; leave it out"):
        demo.build(models | {"stacks": stacks})


def test_mistakes_on_the_command_line_are_one_sentence(folder, models, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--model", str(folder / "toy"), "--port", str(port)]) == 2
    assert f"Port {port} of '127.0.0.1' cannot be listened at" in capsys.readouterr().err
    assert main(["demo", "--model", str(folder / "toy"), "--host", "no such host"]) == 2
    assert "of 'no such host' cannot be listened at" in capsys.readouterr().err
    assert main(["demo", "--model", str(folder / "toy"), "--port", "65536"]) == 2
    assert "--port is 65536, but must be from 0 to 65535" in capsys.readouterr().err
    assert main(["demo", "--model", str(folder), "--port", "0"]) == 2
    assert "is not a model folder, but holds some" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--model", str(folder / "toy")]) == 2
    assert "The page needs Gradio; install it: pip install 'transformer-jax[demo]'." in capsys.readouterr().err


def test_models_are_called_by_their_runs():
    names = {}
    for path in ("runs/numerals/model", "other/numerals/model", "en-de", "/", "x/numerals/model"):
        names[demo._free_name(demo._name_of(Path(path)), names)] = path
    assert list(names) == ["numerals", "numerals 2", "en-de", "model", "numerals 3"]
