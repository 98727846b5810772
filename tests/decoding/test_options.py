import pytest

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.system import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beam_size", 0),
        ("n_best", 0),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("max_extra_tokens", -1),
        ("max_length", 0),
        ("min_length", -1),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("no_repeat_ngram", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("conventions", "theirs"),
    ],
)
def test_options_out_of_range_name_the_field(field, value):
    with pytest.raises(UserError, match=rf"^{field} is .*, but must be "):
        SearchOptions(**{field: value})


def test_options_at_the_edge_of_their_range():
    lowest = {"beam_size": 1, "n_best": 1, "alpha": -1.0, "max_extra_tokens": 0, "max_length": 1, "min_length": 0}
    SearchOptions(**lowest, temperature=0.0, top_k=0, top_p=1.0, no_repeat_ngram=0, seed=2**32 - 1)
