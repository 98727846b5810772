"""What `get_hyper(h)` may say, and what is refused."""

import itertools
import json

import pytest

from transformer_jax.config import default_config
from transformer_jax.experiments.space import (
    Choices,
    Hyper,
    Range,
    check_points,
    from_json,
    load_points,
    to_json,
    with_values,
)
from transformer_jax.system import UserError, shipped_configs

h = Hyper()


def test_lists_make_points_and_combine():
    rates, depths = h.sweep("optim.lr", [0.1, 0.2]), h.sweep("config.model.num_encoder_layers", [1, 2, 3])
    assert rates == [{"optim.lr": 0.1}, {"optim.lr": 0.2}]
    grid = h.product([rates, depths])
    pairs = [(point["optim.lr"], point["model.num_encoder_layers"]) for point in grid]
    assert pairs == list(itertools.product([0.1, 0.2], [1, 2, 3]))
    assert h.chainit([rates, depths]) == [*rates, *depths]
    assert h.zipit([rates, h.sweep("seed", [5, 6])]) == [{"optim.lr": 0.1, "seed": 5}, {"optim.lr": 0.2, "seed": 6}]


def test_ranges_are_parts_of_points():
    points = h.product([h.sweep("seed", [1, 2]), h.loguniform("optim.lr", 1e-4, 1e-2), h.integer("model.d_ff", 8, 64)])
    assert points == [
        {"seed": seed, "optim.lr": Range(1e-4, 1e-2, log=True), "model.d_ff": Range(8, 64, whole=True)}
        for seed in (1, 2)
    ]
    assert h.categorical("optim.name", ["adam", "lion"]) == [{"optim.name": Choices(("adam", "lion"))}]
    assert from_json(json.loads(json.dumps(to_json(points)))) == points


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: h.uniform("optim.lr", 2, 1), "the range of optim.lr goes from 2 to 1; give the smaller end first."),
        (lambda: h.loguniform("optim.lr", 0, 1), "the range of optim.lr begins at 0; loguniform needs one above 0."),
        (lambda: h.uniform("optim.lr", float("nan"), 1), "the range of optim.lr ends at nan; give numbers."),
        (lambda: h.integer("seed", 1, 2.5), "integer of seed goes from 1 to 2.5; give two integers."),
        (lambda: h.sweep("seed", []), "sweep of seed has no values; give some."),
        (lambda: h.sweep("seed", [1, 1]), "the values of seed have one twice: 1, 1; drop it."),
        (lambda: h.sweep("optim.name", [("a",)]), "the values of optim.name are [('a',)]; give a list"),
        (lambda: h.categorical("optim.name", ["adam"]), "categorical of optim.name has 1 values; give at least 2."),
        (lambda: h.product([[1]]), "[1] is not a list of points; combine what h.sweep and the like give."),
        (lambda: h.product([h.sweep("seed", [1]), h.sweep("seed", [2])]), "seed is set twice in one point; drop one."),
        (
            lambda: h.zipit([h.sweep("seed", [1]), h.sweep("optim.lr", [1, 2])]),
            "zipit has lists of 1, 2 points; make them equally long.",
        ),
    ],
)
def test_mistakes_in_combining(make, sentence):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(sentence)


def checked(points):
    return check_points(points, default_config())


def test_integers_become_floats_where_the_field_is_one():
    (point,) = checked(h.sweep("optim.lr", [1]))
    assert isinstance(point["optim.lr"], float)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ([], "get_hyper gives nothing to try"),
        (h.sweep("optim.rl", [1]), "get_hyper sets optim.rl, which is not a field; did you mean optim.lr?"),
        (h.sweep("optim", [1]), "get_hyper sets optim, which is a group; sweep fields of one value."),
        (h.sweep("optim.lr", ["fast"]), "config.optim.lr is 'fast', but must be"),
        (h.sweep("model.dropout_rate", [0.1, 1.5]), "config.model.dropout_rate is 1.5, but must be"),
        (h.uniform("model.dropout_rate", 0.1, 1.5), "config.model.dropout_rate is 1.5, but must be"),
        (h.categorical("optim.name", ["adam", "none"]), "config.optim.name is 'none', but must be"),
        (h.uniform("model.num_heads", 1, 8), "get_hyper draws model.num_heads from a range of numbers; use h.integer"),
        (h.uniform("optim.name", 1, 8), "get_hyper draws optim.name from a range of numbers; use h.categorical"),
        (
            h.chainit([h.sweep("optim.lr", [1.0]), h.uniform("optim.lr", 1, 2)]),
            "get_hyper has values and a range for optim.lr; give one or the other.",
        ),
        (
            h.chainit([h.categorical("seed", [1, 2]), h.categorical("seed", [1, 3])]),
            "get_hyper draws seed from different lists; use the same one everywhere.",
        ),
    ],
)
def test_points_that_do_not_fit_the_config(points, sentence):
    with pytest.raises(UserError) as caught:
        checked(points)
    assert str(caught.value).startswith(sentence)


def test_values_are_set_in_a_copy():
    config = default_config()
    assert with_values(config, {"optim.lr": 0.5, "seed": 9}).to_dict()["optim"]["lr"] == 0.5
    assert config.optim.lr != 0.5
    assert config.seed != 9


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_says_what_to_try(name):
    from transformer_jax.config import load_config_file

    points = check_points(load_points(name), load_config_file(name))
    assert sum(len(point) for point in points) >= 2


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def get_config(): pass", "{path} has no function get_hyper(h), which says what to try; see docs/sweeps.md."),
        ("def get_hyper(h): return h.sweep('seed', [])", "{path}: sweep of seed has no values; give some."),
        ("def get_hyper(h): return 1 / 0", "{path}: get_hyper fails (ZeroDivisionError: division by zero); mend it."),
        ("def get_hyper(h): return 3", "{path}: get_hyper: 3 is not a list of points"),
    ],
)
def test_mistakes_in_get_hyper(tmp_path, code, sentence):
    path = tmp_path / "config.py"
    path.write_text(code)
    with pytest.raises(UserError) as caught:
        load_points(str(path))
    assert str(caught.value).startswith(sentence.format(path=path))
