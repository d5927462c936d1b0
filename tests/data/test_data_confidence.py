"""Columns margin, weight and soft_label do what they say: read, and through the objectives.

`tests/feedback/test_feedback_gate.py` holds the other side: what people's votes write.
`tests/train/test_train_labels.py` holds them through the whole loop.
"""

import json
import math

import pytest

from laurel.core.errors import UsageError
from laurel.data.confidence import MARGIN, PAIR_COLUMNS, RANGES, SOFT_LABEL, WEIGHT
from laurel.data.formats import WEIGHED, rows_fit_for, unused_columns
from laurel.data.source import load_rows

PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
RANKING = {"prompt": "1+1=", "responses": ["2", "3", "4"], "ranks": [1, 2, 3]}
LABELLED = {"prompt": "1+1=", "completion": "2", "label": True}


def rows(tmp_path, *given):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return load_rows(str(path))


def test_the_names_and_the_uses_that_read_them():
    assert PAIR_COLUMNS == (MARGIN, WEIGHT, SOFT_LABEL) == ("margin", "weight", "soft_label")
    assert set(RANGES) == set(PAIR_COLUMNS)
    assert WEIGHED["preference"] == WEIGHED["comparison"] == PAIR_COLUMNS
    assert WEIGHED["label"] == WEIGHED["steps"] == (WEIGHT,)


@pytest.mark.parametrize("use", ["preference", "comparison"])
def test_values_reach_the_row_as_they_are(use, tmp_path):
    sure = {MARGIN: 0.5, WEIGHT: 0.25, SOFT_LABEL: 0.75}
    loaded = rows(tmp_path, {**PAIR, **sure}, {**PAIR, "prompt": "2+0="})
    taken = rows_fit_for(loaded, use)
    assert {name: taken[0].columns[name] for name in PAIR_COLUMNS} == sure
    assert not set(taken[1].columns) & set(PAIR_COLUMNS) and not unused_columns(loaded, use)


@pytest.mark.parametrize(("row", "use"), [(RANKING, "comparison"), (LABELLED, "label")])
def test_rankings_and_labels_have_a_weight(row, use, tmp_path):
    loaded = rows(tmp_path, {**row, WEIGHT: 0.5})
    assert rows_fit_for(loaded, use)[0].columns[WEIGHT] == 0.5 and not unused_columns(loaded, use)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (MARGIN, "far"),
        (MARGIN, True),
        (WEIGHT, -0.1),
        (WEIGHT, "much"),
        (SOFT_LABEL, 1.1),
        (SOFT_LABEL, -0.1),
        (SOFT_LABEL, False),
    ],
)
def test_what_is_out_of_range_is_refused(name, value, tmp_path):
    _, fits = RANGES[name]
    assert not fits(value)
    with pytest.raises(UsageError, match=name):
        rows_fit_for(rows(tmp_path, {**PAIR, name: value}), "preference")


def test_the_ends_of_the_ranges_are_allowed():
    for name, values in {MARGIN: (-2, 0, 3.5), WEIGHT: (0, 7), SOFT_LABEL: (0, 1)}.items():
        assert all(RANGES[name][1](value) for value in values)
    for name in PAIR_COLUMNS:
        assert not RANGES[name][1](math.nan) and not RANGES[name][1](None)
    assert not RANGES[WEIGHT][1](math.inf)
