import pytest

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.registry import MODELS, TASKS, register_task
from transformer_jax.tasks.translation.task import TranslationTask
from transformer_jax.tasks.translation.translator import Translator


class Other(TranslationTask):
    pass


def test_a_task_is_known_to_training_and_to_load(monkeypatch):
    monkeypatch.setitem(TASKS, "other", None)
    monkeypatch.setitem(MODELS, "other", None)
    register_task("other", TranslationTask, Translator)
    register_task("other", Other, Translator)
    assert TASKS["other"] is Other
    assert MODELS["other"] is Translator


@pytest.mark.parametrize("name", ["translation", "classification", "couplet", "transformer"])
def test_our_own_names_are_taken(name):
    before = dict(TASKS), dict(MODELS)
    with pytest.raises(UserError, match=f"'{name}' is one of transformer_jax's own; choose another"):
        register_task(name, Other, Translator)
    assert before == (TASKS, MODELS)
