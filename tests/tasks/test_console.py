import json
import math

import pytest

from transformer_jax.system import UserError
from transformer_jax.tasks.command_line import checked_argument, progress, write_report


def test_a_report_is_json_where_numbers_are_infinite(capfdbinary):
    write_report({"perplexity": math.inf, "worst": -math.inf, "对联": "ß", "bleu": 0.1})
    out = capfdbinary.readouterr().out.decode("utf-8")
    assert json.loads(out) == {"perplexity": None, "worst": None, "对联": "ß", "bleu": 0.1}
    assert out.endswith("\n")
    assert "对联" in out


def test_so_it_is_in_groups(capfdbinary):
    write_report({"all": {"perplexity": math.inf, "lines": 3}, "samples": [{"score": -math.inf}], "nan": math.nan})
    report = json.loads(capfdbinary.readouterr().out)
    assert report == {"all": {"perplexity": None, "lines": 3}, "samples": [{"score": None}], "nan": None}


def test_progress_is_told_apart_from_output(capsys):
    progress("42 %")
    assert capsys.readouterr() == ("", "transformer-jax: 42 %\n")


def test_arguments_are_utf8():
    assert checked_argument("天 ß") == "天 ß"
    with pytest.raises(UserError, match="not UTF-8"):
        checked_argument("\udcff")
