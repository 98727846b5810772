"""A real run, trained once."""

import pytest

from tests.experiments.folders import train_tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run and its outcome; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as monkeypatch:
        return folder, train_tiny(folder, monkeypatch)
