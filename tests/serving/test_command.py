import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.serving.servers import PATIENCE, Client, until
from tests.tasks.toys import write_stacks
from transformer_jax.cli import _parser, main
from transformer_jax.serving import TOKEN_VARIABLE, _limits, _token

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path):
    """Start a server in a process of its own; returns it and its address as it says it."""
    started = []

    def start(*arguments):
        log = tmp_path / "log"
        command = [
            sys.executable,
            "-m",
            "transformer_jax",
            "serve",
            "--port",
            "0",
            "--no-warm-up",
            *map(str, arguments),
        ]
        with log.open("w") as stream:
            started.append(subprocess.Popen(command, cwd=REPOSITORY, stderr=stream))
        until(lambda: "serving" in log.read_text() or started[-1].poll() is not None)
        address = re.search(r"serving (\S+) on http://(\S+):(\d+) ", log.read_text())
        assert address, log.read_text()
        return started[-1], log, address.groups()

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_what_it_has_begun(start, folders, number):
    process, log, (_, _, port) = start("--model", folders["translate"])
    client = Client(int(port))
    with ThreadPoolExecutor(4) as threads:
        # The first one compiles, which takes longer than the rest of this test.
        asked = [threads.submit(client.results, "/v1/translate", ["cab"] * 3) for _ in range(4)]
        until(lambda: client.metric("transformer_jax_waiting_requests") == 3 or all(future.done() for future in asked))
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert [len(future.result(PATIENCE)) for future in asked] == [3] * 4
    assert log.read_text().splitlines()[-1] == "transformer-jax: stopped"
    with pytest.raises(ConnectionRefusedError):
        client.ask("/healthz")


def test_models_of_several_tasks_are_served(start, folders):
    models = [word for folder in folders.values() for word in ("--model", folder)]
    _, _, (paths, host, port) = start(*models, "--token", "a", "--max-lines", 2)
    assert (paths, host) == ("/v1/translate,/v1/classify,/v1/couplets", "127.0.0.1")
    client = Client(int(port), {"Authorization": "Bearer a"})
    served = json.loads(client.ask("/openapi.json")[2])["paths"]
    assert {"/v1/translate", "/v1/classify", "/v1/couplets"} <= set(served)
    assert client.refusal("/v1/classify", {"texts": ["a"] * 3})[0] == 413


def error(capfd, *arguments):
    assert main(["serve", *map(str, arguments)]) == 2
    return capfd.readouterr().err


def test_mistakes_are_explained(folders, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    model = folders["translate"]
    assert "--host 192.0.2.1 accepts requests from other machines; give --token" in error(
        capfd, "--model", model, "--host", "192.0.2.1"
    )
    assert "--max-lines is 0" in error(capfd, "--model", model, "--max-lines", 0)
    assert "--gather-ms is -1.0" in error(capfd, "--model", model, "--gather-ms", -1)
    assert "--batch-size is 0" in error(capfd, "--model", model, "--batch-size", 0)
    assert "--port is 70000" in error(capfd, "--model", model, "--port", 70_000)
    assert "--token must be printable" in error(capfd, "--model", model, "--token", "a\n")
    assert "--token must be printable" in error(capfd, "--model", model, "--token", "")
    assert "would both answer /v1/translate" in error(capfd, "--model", model, "--model", model, "--port", 0)
    assert "--model is empty" in error(capfd, "--model", "", "--port", 0)
    assert "no command serves" in error(capfd, "--model", write_stacks(tmp_path / "stacks"), "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be used" in error(capfd, "--model", model, "--port", port)


def test_a_missing_extra_is_named(folders, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'transformer-jax[serve]'" in error(capfd, "--model", folders["translate"])


def parsed(*arguments):
    return _parser().parse_args(["serve", "--model", "m", *arguments])


def test_who_needs_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert _token(parsed("--host", host)) is None
    assert _token(parsed("--host", "192.0.2.1", "--no-token")) is None
    assert _token(parsed("--host", "192.0.2.1", "--token", "a b")) == "a b"
    monkeypatch.setenv(TOKEN_VARIABLE, "from outside")
    assert _token(parsed("--host", "192.0.2.1")) == "from outside"
    assert _token(parsed()) == "from outside"
    assert _token(parsed("--token", "mine")) == "mine"


# Docker can't run in tests, but what its files say can be checked.


def instruction(name):
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_image_starts_a_server_that_needs_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    [entry], [command] = map(json.loads, instruction("ENTRYPOINT")), map(json.loads, instruction("CMD"))
    program, *arguments = entry
    assert program == "transformer-jax"
    found = _parser().parse_args([*arguments, *command])
    assert found.model == ["/models/model"]
    assert _limits(found)
    with pytest.raises(Exception, match="--token"):
        _token(found)
    assert instruction("EXPOSE") == [str(found.port)]


def test_the_image_copies_what_there_is_and_does_not_run_as_root():
    for line in instruction("COPY"):
        *sources, _ = line.split()
        assert all((REPOSITORY / source).exists() for source in sources)
        allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()
        assert all(f"!{source}" in allowed for source in sources)
    [user] = instruction("USER")
    install = " ".join(instruction("RUN"))
    assert re.search(rf"useradd .*\b{user}\b", install)
    extras = re.search(r"\[serve\$\{EXTRA\}\]", install)
    assert extras


def test_the_check_of_the_image_tells_whether_there_is_a_server(client):
    [check] = re.findall(r"CMD (\[.*\])", " ".join(instruction("HEALTHCHECK")))
    program, *arguments = json.loads(check)
    assert program == "python"
    for port, status in ((client.port, 0), (1, 1)):
        here = [argument.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for argument in arguments]
        ran = subprocess.run([sys.executable, *here], stderr=subprocess.DEVNULL, timeout=PATIENCE)
        assert ran.returncode == status


def test_compose_builds_and_starts_the_image():
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    [entry] = map(json.loads, instruction("ENTRYPOINT"))
    extras = re.findall(r"^(\w+) = ", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    for service in services.values():
        found = _parser().parse_args([*entry[1:], *service["command"]])
        [mounted] = [volume for volume in service["volumes"] if isinstance(volume, dict)]
        assert (mounted["type"], mounted["target"], mounted["read_only"]) == ("bind", found.model[0], True)
        assert TOKEN_VARIABLE in service["environment"]
        assert service["ports"] == [f"127.0.0.1:{found.port}:{found.port}"]
        assert int(service["stop_grace_period"].removesuffix("s")) > found.drain_seconds
        build = service["build"]
        if isinstance(build, dict):
            assert build["args"]["EXTRA"].lstrip(",") in extras
            assert "ARG EXTRA" in (REPOSITORY / "Dockerfile").read_text()
    assert {name: "deploy" in service for name, service in services.items()} == {"serve": False, "serve-gpu": True}


def commands_of(page):
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line and not line.startswith("#")]


def test_the_commands_of_the_page_are_understood(client):
    asked = 0
    for words in commands_of(REPOSITORY / "docs" / "serving.md"):
        if words[:2] == ["transformer-jax", "serve"]:
            _parser().parse_args(words[1:])
        if words[0] == "curl" and "-d" in words:
            address = next(word for word in words if "/v1/" in word)
            path = "/v1/" + address.partition("/v1/")[2]
            assert client.ask(path, words[words.index("-d") + 1].encode())[0] == 200
            asked += 1
    assert asked >= 3
