import json

import pytest

from tests.outcomes import refused
from tests.tasks.toys import write_bundle, write_stacks
from transformer_jax.system import UserError
from transformer_jax.tasks.command_line import load_for
from transformer_jax.tasks.model_folder import folder_of
from transformer_jax.tasks.pair_command import PairCommand
from transformer_jax.tasks.registry import REGISTRY, register_task
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel
from transformer_jax.tasks.translation.translator import TranslatorSettings


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
    refused(run(command, model=tmp_path / "nowhere"), "nowhere", "not a folder")


class Answerer(Seq2SeqModel):
    """A class that may be registered for a task of one's own."""

    settings_type = TranslatorSettings


@pytest.fixture
def answering():
    register_task("answering", None, Answerer)
    yield
    del REGISTRY["answering"]


@pytest.mark.parametrize("command", ["translate", "classify", "couplet", "evaluate"])
@pytest.mark.parametrize("kind", ["stacks", "registered"])
def test_a_model_that_no_command_is_for(run, tmp_path, answering, command, kind):
    model = (write_stacks if kind == "stacks" else write_bundle)(tmp_path / "model")
    if kind == "registered":
        config = json.loads((model / "config.json").read_text())
        config["sha256"].pop("config.json")
        (model / "config.json").write_text(json.dumps(config | {"task": "answering"}))
    arguments = ["--source", "a", "--reference", "b"] if command == "evaluate" else ["abc"]
    refused(run(command, *arguments, model=model), str(model), "holds a model that no command serves", "init_from")


def test_a_command_that_no_task_has(translator):
    with pytest.raises(UserError, match="The command alone belongs to no registered task"):
        load_for(PairCommand("alone", "do something"), str(translator))


def test_the_folder_of_a_run_stands_for_its_model(tmp_path):
    runs = tmp_path / "runs"
    model = write_bundle(runs / "numerals" / "model")
    (runs / "numerals" / "checkpoints").mkdir()
    assert folder_of(runs / "numerals") == model
    (runs / "begun" / "checkpoints").mkdir(parents=True)
    for path in (runs / "begun", runs / "begun" / "model"):
        with pytest.raises(UserError, match=r"is a run that has not written its model yet"):
            folder_of(path)
    with pytest.raises(UserError, match=r"runs is not a model folder, but holds some; .* such as .*runs/numerals\.$"):
        folder_of(runs)
