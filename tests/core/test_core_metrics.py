"""Sums divide once; the catalogue is complete, resolvable and equal to the page that
documents it.
"""

import pickle
from pathlib import Path

import pytest

from laurel.core.errors import UsageError
from laurel.core.metric_catalogue import CATALOGUE
from laurel.core.metrics import BEGIN, END, Sums, explain, main, metric_table, with_metric_table


def test_T67_weighted_metrics():
    """T67, A57: KL 1.0 over 1 token and 0 over 9 tokens is .1, not the mean of means .5."""
    one, nine = Sums(), Sums()
    one.add("kl", 1.0, 1)
    nine.add("kl", 0.0, 9)
    one.merge(nine)
    assert one.means() == {"kl": 0.1}


def test_merging_in_any_order_and_split_gives_the_same():
    whole, left, right = Sums(), Sums(), Sums()
    for i, value in enumerate([3.0, 1.0, 4.0, 1.0, 5.0]):
        for sums in (whole, left if i % 2 else right):
            sums.add("entropy", value, 2)
            sums.peak("ratio/max", value)
    right.merge(pickle.loads(pickle.dumps(left)))  # as it travels between processes
    assert right.means() == whole.means() == {"entropy": 1.4, "ratio/max": 5.0}


def test_totals_add_up_and_are_not_divided():
    """Two micro-batches of 30 and 10 supervised tokens are a step of 40, not of 20."""
    one, two = Sums(), Sums()
    one.total("supervised_tokens", 30)
    two.total("supervised_tokens", 10)
    one.merge(two)
    assert one.means() == {"supervised_tokens": 40.0}


def test_nothing_counted_is_not_zero():
    sums = Sums()
    sums.add("failed_fraction", 0, 0)
    assert sums.means() == {}
    sums.add("failed_fraction", 0, 4)
    assert sums.means() == {"failed_fraction": 0.0}


def test_a_peak_that_is_not_a_number_is_not_hidden():
    sums = Sums()
    for value in (1.0, float("nan"), 2.0):
        sums.peak("ratio/max", value)
    assert sums.means()["ratio/max"] != sums.means()["ratio/max"]


def test_every_metric_says_what_is_healthy_and_what_to_check():
    """A60."""
    for name, meaning in CATALOGUE.items():
        assert all((meaning.what, meaning.unit, meaning.healthy, meaning.check)), name
        assert "|" not in f"{meaning.what}{meaning.unit}{meaning.healthy}{meaning.check}", (
            f"{name} breaks the table"
        )
        assert meaning.low is None or meaning.high is None or meaning.low < meaning.high


def test_explain():
    assert explain("reward") is CATALOGUE["reward"]
    assert explain("rewards/my_module.f/mean") is CATALOGUE["rewards/*/mean"]
    with pytest.raises(UsageError, match="entropy"):
        explain("entropi")


def test_the_page_holds_the_generated_table():
    """Regenerate with `python -m laurel.core.metrics docs/report.md`."""
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert with_metric_table(page) == page
    assert metric_table() in page


def test_writing_the_table(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    main([str(page)])
    assert page.read_text() == f"before\n{BEGIN}{metric_table()}{END}after\n"
    main([])
    assert capsys.readouterr().out == metric_table()
    with pytest.raises(UsageError, match="marker"):
        with_metric_table("no markers")
