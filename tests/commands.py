"""Fixtures that run a command on a tiny model of each task."""

import io
import sys

import pytest

from tests.tasks.toys import write_bundle, write_classifier, write_couplet_writer
from transformer_jax.cli import main
from transformer_jax.system import output


@pytest.fixture(scope="session")
def translator(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("translator") / "model")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="session")
def couplet_writer(tmp_path_factory):
    return write_couplet_writer(tmp_path_factory.mktemp("couplet_writer") / "model")


class Pipe(io.BytesIO):
    """Bytes that can be read once."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


@pytest.fixture
def run(translator, classifier, couplet_writer, monkeypatch, capfdbinary):
    """Run a command on a model, its own unless told otherwise; returns (exit status, stdout, stderr)."""
    models = {"translate": translator, "evaluate": translator, "classify": classifier, "couplet": couplet_writer}

    monkeypatch.setattr(output, "QUIET_SECONDS", 1e9)  # whatever the speed of the machine

    def call(command, *arguments, stdin=b"", pipe=None, model=None):
        stream = io.BytesIO(stdin) if pipe is None else Pipe(pipe)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream, encoding="ascii"))
        folder = models[command] if model is None else model
        status = main([command, "--model", str(folder), *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return status, out.decode("utf-8"), err.decode("utf-8")

    return call
