import pytest

from tests.cli.outcomes import refused


@pytest.mark.parametrize(
    ("command", "others"),
    [
        ("translate", {"classifier": "classify", "couplet_writer": "couplet"}),
        ("classify", {"translator": "translate", "couplet_writer": "couplet"}),
        ("couplet", {"translator": "translate", "classifier": "classify"}),
    ],
)
def test_a_model_of_another_kind_names_the_command_for_it(run, request, command, others):
    for fixture, right in others.items():
        model = request.getfixturevalue(fixture)
        refused(run(command, "abc", model=model), str(model), f"use transformer-jax {right}")


@pytest.mark.parametrize("command", ["translate", "classify", "couplet", "evaluate"])
def test_no_model(run, tmp_path, command):
    refused(run(command, model=tmp_path / "nowhere"), "nowhere", "no folder")
