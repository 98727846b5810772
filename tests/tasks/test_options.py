import pytest

from tests.outcomes import refused
from tests.tasks.toys import write_bundle, write_stacks
from transformer_jax.tasks.registry import MODELS
from transformer_jax.tasks.translation.translator import Translator


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


class Answerer(Translator.__base__):
    """What a person may register for a task of their own."""


@pytest.mark.parametrize("command", ["translate", "classify", "couplet", "evaluate"])
@pytest.mark.parametrize("kind", ["stacks", "registered"])
def test_a_model_that_no_command_is_for(run, tmp_path, monkeypatch, command, kind):
    model = (write_stacks if kind == "stacks" else write_bundle)(tmp_path / "model")
    if kind == "registered":
        Answerer.settings_type = Translator.settings_type
        monkeypatch.setitem(MODELS, "translation", Answerer)
    arguments = ["--source", "a", "--reference", "b"] if command == "evaluate" else ["abc"]
    refused(run(command, *arguments, model=model), str(model), "holds no model for the text commands", "init_from")
