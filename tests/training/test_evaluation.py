import time
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.tasks.base import Evaluation
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.evaluation import Choice, choose, mean_of, params_to_evaluate, rank
from transformer_jax.training.setup import Evaluator
from transformer_jax.training.step import TrainState
from transformer_jax.training.stopping import Clock

NO_LIMIT = Clock(0.0, 0.0)


class Known:
    """A task whose scores are the parameters themselves."""

    lower_is_better = ("loss",)
    metrics = ("loss", "bleu", "final")
    model_config = graphdef = tokenizer_files = settings = data_name = notes = eval_loss = None
    train = validation = validation_examples = ("one",)

    def predict(self, params, numbers, *, final):
        return [(params["a"], float(final)) for _ in numbers]

    def score(self, predictions, sums):
        assert sums is None
        [(value, final)] = predictions
        return Evaluation({"loss": value, "bleu": value, "final": final}, [])

    encode = collate = init_params = loss = flops = score


EVALUATOR = Evaluator(Known(), None, make_mesh(MeshConfig()))


def chosen(values, clock=NO_LIMIT):
    reported = []
    candidates = {name: (lambda value=value: {"a": value}) for name, value in values.items()}
    report = lambda name, evaluation: reported.append((name, evaluation))  # noqa: E731
    ranked = partial(rank, Known(), "bleu")
    return choose(candidates, partial(EVALUATOR, final=True), ranked, clock, report), reported


def test_equal_ranks_are_told_apart_by_the_loss():
    def ranked(**scores):
        return rank(Known(), "bleu", Evaluation(scores, []))

    assert ranked(bleu=0.0, loss=1.0) > ranked(bleu=0.0, loss=2.0)
    assert ranked(bleu=1.0, loss=2.0) > ranked(bleu=0.0, loss=1.0)
    assert ranked(bleu=0.0) == (0.0, 0.0)


def test_a_score_that_is_not_a_number_is_the_worst():
    def ranked(**scores):
        return rank(Known(), "bleu", Evaluation(scores, []))

    assert ranked(bleu=0.0, loss=float("nan")) > ranked(bleu=float("nan"), loss=1.0)
    assert ranked(bleu=0.0, loss=9.0) > ranked(bleu=0.0, loss=float("nan"))


def test_more_is_better_unless_the_task_says_otherwise():
    assert rank(Known(), "bleu", EVALUATOR({"a": 2.0}, final=False)).score == 2.0
    evaluation = EVALUATOR({"a": 2.0}, final=True)
    assert rank(Known(), "loss", evaluation).score == -2.0
    assert evaluation.scores == {"loss": 2.0, "bleu": 2.0, "final": 1.0}


@pytest.mark.parametrize(
    ("values", "best"),
    [({"last": 1.0}, "last"), ({"last": 1.0, "mean": 3.0, "best": 2.0}, "mean"), ({"last": 1.0, "best": 1.0}, "last")],
)
def test_the_first_of_the_best_is_chosen(values, best):
    found, reported = chosen(values)
    assert found == Choice(best, {"a": values[best]}, dict(reported)[best])
    assert found.evaluation.scores["bleu"] == values[best]
    assert [name for name, _ in reported] == list(values)


def test_without_time_only_the_first_is_evaluated():
    found, reported = chosen({"last": 1.0, "best": 2.0}, Clock(time.monotonic() - 120, max_minutes=1.0))
    assert found.name == "last"
    assert [(name, evaluation is None) for name, evaluation in reported] == [("last", False), ("best", True)]


def state(value, average):
    params = {"a": jnp.full(3, value)}
    return TrainState(jnp.int32(1), params, (), None if average is None else {"a": jnp.full(3, average)})


def test_the_average_is_evaluated_where_there_is_one():
    assert params_to_evaluate(state(1.0, None))["a"][0] == 1.0
    assert params_to_evaluate(state(1.0, 5.0))["a"][0] == 5.0


def test_the_mean_of_checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step, value in ((1, 2.0), (2, 4.0), (3, 9.0)):
            checkpoints.save(step, state(value, None), {})
        like = state(0.0, None).params
        np.testing.assert_allclose(mean_of(checkpoints, [2], like)["a"], 4.0)
        np.testing.assert_allclose(mean_of(checkpoints, [1, 2, 3], like)["a"], 5.0)
