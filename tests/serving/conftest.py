"""A server with a tiny model of each task."""

import pytest

from tests.serving.servers import served
from tests.tasks.toys import write_bundle, write_classifier, write_couplet_writer
from transformer_jax.serving import load_engines


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return {
        "translate": write_bundle(folder / "translator"),
        "classify": write_classifier(folder / "classifier"),
        "couplets": write_couplet_writer(folder / "couplet_writer"),
    }


@pytest.fixture(scope="session")
def engines(folders):
    return load_engines([str(folder) for folder in folders.values()])


@pytest.fixture(scope="module")
def client(engines):
    with served(engines, max_characters=200, max_lines=8, max_beam=4, max_bytes=20_000) as client:
        yield client
