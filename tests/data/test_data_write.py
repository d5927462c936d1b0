"""Writing: what is written reads back equal, in every format; what cannot be is refused and leaves
nothing behind.
"""

import json

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from laurel.core.errors import UsageError
from laurel.data.csv_cell import TEXT_COLUMNS, decode_cell, encode_cell
from laurel.data.source import Row, load_rows
from laurel.data.write import write_rows

SUFFIXES = ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"]
texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["46", "true", "null", '"q"', "[1]", "{}", "007", "1e5", "a,b\r\nc", "\r"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}),
    max_size=3,
)
records = st.fixed_dictionaries(
    {"prompt": texts},
    optional={
        "completion": texts,
        "messages": messages,
        "margin": st.floats(-9, 9),
        "extra": values,
    },
)


def as_rows(columns):
    return [Row(item, f"a:{i}", f"a-{i}") for i, item in enumerate(columns, start=1)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(columns=st.lists(records, min_size=1, max_size=4))
@example(columns=[{"prompt": ""}])
@example(
    columns=[
        {"prompt": "a", "extra": None},
        {"prompt": "b"},
        {"prompt": "c", "extra": {"d": [None, -0.0, 1, 1.0, True]}},
    ]
)
@example(
    columns=[
        {"prompt": "\r", "messages": []},
        {"prompt": "\x00", "messages": [{"role": "user", "content": "\n"}]},
    ]
)
def test_round_trip(tmp_path, suffix, columns):
    path = tmp_path / f"rows.{suffix}"
    assert write_rows(as_rows(columns), path) == len(columns)
    back = [row.columns for row in load_rows(str(path))]
    assert [json.dumps(item, sort_keys=True) for item in back] == [
        json.dumps(item, sort_keys=True) for item in columns
    ]
    first = path.read_bytes()
    write_rows(as_rows(columns), path)
    assert path.read_bytes() == first
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


@given(values, st.sampled_from(["prompt", "extra"]))
def test_cells_round_trip_or_are_refused(value, column):
    try:
        cell = encode_cell(value, column)
    except UsageError:
        assert column in TEXT_COLUMNS and not isinstance(value, str | list | dict)
        return
    assert json.dumps(decode_cell(cell, column)) == json.dumps(value) and cell


def test_parquet_uses_native_types_where_it_can(tmp_path):
    turn = {"role": "user", "content": "x"}
    write_rows(
        as_rows([{"prompt": "a", "margin": 1.5, "messages": [turn], "extra": {"a": 1}}]),
        tmp_path / "a.parquet",
    )
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert [str(item.type) for item in schema][:2] == ["string", "double"]
    assert (
        str(schema.field("messages").type).startswith("list<")
        and str(schema.field("extra").type) == "string"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, suffix):
    for bad in (
        {"extra": float("nan")} if suffix != "parquet" else {"extra": {"x": float("nan")}},
        {"extra": {"x": {1, 2}}},
        {"extra": {"x": "\ud800"}},
    ):
        with pytest.raises(UsageError):
            write_rows(as_rows([{"prompt": "a"}, bad]), tmp_path / f"a.{suffix}")
    with pytest.raises(UsageError, match="no rows"):
        write_rows([], tmp_path / f"a.{suffix}")
    with pytest.raises(UsageError, match="no such folder"):
        write_rows(as_rows([{"prompt": "a"}]), tmp_path / "no" / f"a.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffixes_and_numbers_in_text_columns_of_csv(tmp_path):
    with pytest.raises(UsageError, match="unknown kind of file"):
        write_rows(as_rows([{"prompt": "a"}]), tmp_path / "a.txt")
    with pytest.raises(UsageError, match="column `answer` of a CSV file holds text") as caught:
        write_rows(as_rows([{"prompt": "a", "answer": 46}]), tmp_path / "a.csv")
    assert "a:1" in str(caught.value) and "JSONL" in str(caught.value)
