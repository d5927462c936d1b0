"""The gate to training: what an export says of its labels is what laurel's reader takes.

`tests/data/test_data_confidence.py` holds the other side, without a vote.
"""

import json

import pytest
from feedback_votes import put

from laurel.data.confidence import LABEL_COLUMNS, PAIR_COLUMNS, RANGES, WEIGHT
from laurel.data.formats import detect_format, rows_fit_for, unused_columns
from laurel.data.source import load_rows
from laurel_feedback.exchange.export import export

FORMS = {
    "pairs": {f"p{n}": {} for n in range(4)},
    "rankings": {f"r{n}": {"texts": ("one", "two", "three")} for n in range(4)},
    "single answers": {f"s{n}": {"texts": ("one",)} for n in range(4)},
}
TAKEN = {
    ("preferences", "pairs"): ("preference", "comparison"),
    ("preferences", "rankings"): ("preference", "comparison"),
    ("unpaired", "pairs"): ("label",),
    ("unpaired", "rankings"): ("label",),
    ("unpaired", "single answers"): ("label",),
    ("ranks", "pairs"): ("comparison",),
    ("ranks", "rankings"): ("comparison",),
}
"""(kind of the export, form of the batch): the uses of rows that take it: dpo and its like are
`preference`, reward `comparison`, kto `label`."""
OWN = {
    "preferences": set(PAIR_COLUMNS),
    "unpaired": set(),
    "ranks": {WEIGHT},
}
"""The columns of each kind that say how sure a label is."""


def votes(form, items):
    """Three people, of whom the third disagrees on the first item."""
    for number, item in enumerate(items):
        for who in ("a", "b", "c"):
            other = who == "c" and not number
            if form == "rankings":
                yield {"item": item, "who": who, "ranking": (3, 2, 1) if other else (1, 2, 3)}
            else:
                yield {"item": item, "who": who, "rating": 4 if other else 1}


@pytest.mark.parametrize(("kind", "form"), TAKEN, ids=" of ".join)
def test_every_export_has_these_columns_and_laurel_takes_them(store, tmp_path, kind, form):
    settings = {"rankings": {"form": "ranking"}}
    put(store, list(votes(form, FORMS[form])), items=FORMS[form], **settings.get(form, {}))
    path = tmp_path / "rows.jsonl"
    export(store, "batch", kind, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows
    for row in rows:
        assert set(row) & set(PAIR_COLUMNS) == OWN[kind]
        for name in OWN[kind]:
            words, fits = RANGES[name]
            assert fits(row[name]), f"{name} = {row[name]} is not {words}"
        if kind == "preferences":  # chosen is never the less likely one
            assert row["margin"] >= 0 and 0.5 <= row["soft_label"] <= 1 and 0 < row["weight"] <= 1
    loaded = load_rows(str(path))
    for use in TAKEN[kind, form]:
        taken = rows_fit_for(loaded, use)
        assert taken
        assert not set(unused_columns(loaded, use)) & OWN[kind], (
            "a column that training does not read"
        )
        for row in taken:
            if kind == "preferences":
                assert set(PAIR_COLUMNS) <= set(row.columns)


def test_columns_that_were_not_asked_for_are_not_there(store, tmp_path):
    put(store, list(votes("pairs", FORMS["pairs"])), items=FORMS["pairs"])
    export(store, "batch", "preferences", tmp_path / "rows.jsonl", columns=(WEIGHT,))
    rows = load_rows(str(tmp_path / "rows.jsonl"))
    assert all(set(row.columns) & set(PAIR_COLUMNS) == {WEIGHT} for row in rows)
    assert detect_format(rows[0].columns).name == "preference" and set(LABEL_COLUMNS) <= set(
        PAIR_COLUMNS
    )
