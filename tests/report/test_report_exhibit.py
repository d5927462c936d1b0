"""An exhibit as a page and as a picture: self-contained, escaped, every cell where it belongs,
colours that mean their sign.
"""

import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as Xml

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report_page import EVIL, Balanced

from laurel.core.errors import UsageError
from laurel.report.cells import cell_text, exit_reward, is_wall, shown_value, value_texts
from laurel.report.exhibit import Chart, Claim, Exhibit, Grid, Table
from laurel.report.exhibit_page import grid_as_text, numeric_columns, render, write_page
from laurel.report.maps import (
    NEGATIVE,
    POSITIVE,
    cell_colours,
    chart_svg,
    draw_curves,
    grid_svg,
    legend_columns,
    light_inks,
    map_height,
    panel_columns,
    write_figure,
)
from laurel.report.plots import INK, VARIABLES

GRID = Grid(
    "step reward -2", ((-5.25, None, None), (-9.0, -7.0, 1.5)), (("→", "", "+1"), ("↑→", "", "odd"))
)
CHART = Chart(
    "regret",
    "horizon",
    "mistakes",
    {"cloning": [(5, 1, 0.5, 2), (10, 4, 3, 5)], "asking": [(5, 1, 1, 1), (10, 2, 2, 2)]},
)
TABLE = Table(
    "learners",
    ("method", "right", "error", "seed"),
    (("sarsa", True, 0.123456, 3), ("q", False, 2.0, None)),
)
CLAIMS = (Claim("it goes up", True, "z = 3.1"), Claim("it goes down", False, "z = -0.2"))
EXHIBIT = Exhibit(
    "a small world", "what it is worth", {}, (GRID,), (TABLE,), (CHART,), CLAIMS, ("a note",)
)


def parsed(exhibit, command="laurel tabular solve"):
    html = render(exhibit, command)
    page = Balanced()
    page.feed(html)
    assert page.open == []
    return html, page


def test_a_page_needs_nothing_but_itself(tmp_path):
    html, page = parsed(EXHIBIT)
    assert not {"script", "link", "iframe", "img"} & page.tags
    fetched = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "xlink:href", "action") and not value.startswith("#")
    ]
    assert fetched == [] and "@import" not in html and "url(" not in html.replace("url(#", "")
    assert "prefers-color-scheme: dark" in html
    write_page(EXHIBIT, tmp_path / "page.html", command="laurel tabular solve")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_tells_everything():
    html, _ = parsed(EXHIBIT, "laurel tabular solve --step-reward -2")
    for text in (
        "a small world",
        "what it is worth",
        "--step-reward -2",
        "step reward -2",
        "regret",
        "cloning",
        "a note",
        "z = 3.1",
    ):
        assert text in html
    assert "1 of 2 claims did not hold" in html and html.count("✓") == 1 and html.count("✗") == 1
    assert re.findall(r'<td(?: class="right")?>(.*?)</td>', html) == [
        "sarsa",
        "yes",
        "0.1235",
        "3",
        "q",
        "no",
        "2",
        "-",
    ]
    assert 'aria-label="step reward -2: → -5.250, wall, +1; ↑→ -9.000, -7.000, odd 1.500"' in html
    assert "did not hold" not in parsed(Exhibit("a", "b", {}, claims=CLAIMS[:1]))[0]


def test_a_page_takes_its_colours_from_the_style():
    html, _ = parsed(EXHIBIT)
    assert (
        not any(code in html for code in VARIABLES)
        and "var(--line2)" in html
        and "var(--ink)" in html
    )


def test_everything_foreign_is_escaped():
    grid = Grid(EVIL, ((1.0,),), ((EVIL,),))
    chart = Chart(EVIL, EVIL, EVIL, {EVIL: [(0, 1, 1, 1)], "$x^": [(0, 1, 1, 1)]})
    exhibit = Exhibit(
        EVIL,
        EVIL,
        {},
        (grid,),
        (Table(EVIL, (EVIL,), ((EVIL,),)),),
        (chart,),
        (Claim(EVIL, True, EVIL),),
        (EVIL + "\x1b",),
    )
    html, page = parsed(exhibit, EVIL)
    assert not {"script", "img"} & page.tags and html.count("</style>") == 1 and "\x1b" not in html
    assert "$x^" in html


def test_ids_of_two_pictures_do_not_meet():
    _, page = parsed(
        Exhibit(
            "a",
            "b",
            {},
            (GRID, Grid("other", GRID.values, GRID.marks)),
            (),
            (CHART, Chart("more", "x", "y", CHART.curves)),
        )
    )
    assert len(page.ids) == len(set(page.ids))


def arrow_count(svg, words):
    """Arrows are the filled outlines in the ink that is not a square cell: a polygon of seven
    corners.
    """
    found = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--ink\)', svg)
    assert all(path.count("L") + path.count("M") >= 7 for path in found), words
    return len(found)


@pytest.mark.parametrize(
    "mark, arrows", [("", 0), ("↑", 1), ("↑→", 2), ("↑↓←→", 4), ("end", 0), ("↑?", 0)]
)
def test_arrows_are_drawn_and_words_are_written(mark, arrows):
    svg = grid_svg(Grid("one", ((0.5,),), ((mark,),)))
    assert arrow_count(svg, mark) == arrows
    assert (f">{mark}<" in svg) == (bool(mark) and not arrows) and ">0.500<" in svg


def test_an_arrow_points_where_it_says():
    """The tip is the corner furthest from the cell's middle; y grows downwards in an SVG."""

    def tip(mark):
        svg = grid_svg(
            Grid("one", ((None, None, 0.5), (None, None, None)), (("a", "b", mark), ("", "", "")))
        )
        path = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--ink\)', svg)[0]
        corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)]
        return max(x for x, _ in corners) - min(x for x, _ in corners), corners

    wide, corners = tip("→")
    head = max(corners)
    assert wide > 15 and sum(abs(x - head[0]) < 0.5 for x, _ in corners) == sum(
        c == head for c in corners
    )  # one corner furthest right
    narrow, corners = tip("↑")
    top = min(y for _, y in corners)
    assert narrow < wide and len({(x, y) for x, y in corners if abs(y - top) < 0.5}) == 1


def test_only_cells_with_neither_value_nor_mark_are_walls():
    svg = grid_svg(GRID)
    assert is_wall(None, "") and not is_wall(None, "+1") and not is_wall(0.0, "")
    assert svg.count("fill: var(--muted); opacity: 0.6") == 1  # (2,2)
    assert ">+1<" in svg and ">odd<" in svg and ">-9.000<" in svg


def test_colours_are_centred_on_zero_where_both_signs_meet():
    tint = cell_colours(Grid("", ((-2.0, 0.0, 2.0),), (("", "", ""),)))
    assert tint(-2.0, "")[0] == NEGATIVE and tint(2.0, "")[0] == POSITIVE
    centred = cell_colours(Grid("", ((-2.0, 1.0, 2.0),), (("", "", ""),)))
    assert (
        centred(1.0, "")[1] == tint(1.0, "")[1]
    )  # whatever value is nearest to 0, the scale begins there
    assert (
        tint(-1.0, "")[1] == pytest.approx(tint(1.0, "")[1])
        and tint(0.0, "")[1] < tint(0.1, "")[1] < tint(2.0, "")[1]
    )


def test_cells_stand_where_the_rows_say():
    svg = grid_svg(Grid("", ((None, None), (None, None)), (("a", "b"), ("c", "d"))))
    at = {
        mark: (float(x), float(y))
        for x, y, mark in re.findall(r'<text[^>]* x="(\S+)" y="(\S+)"[^>]*>([abcd])<', svg)
    }
    left, right, above, below = at["a"][0], at["d"][0], at["a"][1], at["d"][1]
    assert left + 50 < right and above + 50 < below
    assert at["b"] == pytest.approx((right, above), abs=1) and at["c"] == pytest.approx(
        (left, below), abs=1
    )


def test_colours_of_one_sign_use_the_whole_scale():
    tint = cell_colours(Grid("", ((-13.0, -12.0, -11.0),), (("", "", ""),)))
    assert [tint(value, "")[0] for value in (-13.0, -11.0)] == [NEGATIVE] * 2
    assert tint(-11.0, "")[1] < 0.1 < tint(-12.0, "")[1] < tint(-13.0, "")[1]
    assert (
        tint(None, "-1")[0] == NEGATIVE
        and tint(None, "+1")[0] == POSITIVE
        and tint(None, "+1")[1] > tint(-13.0, "")[1]
    )


@pytest.mark.parametrize(
    "values, digits, told",
    [
        ((0.8116, -1.0, None), 3, ["0.812", "-1.000", ""]),
        ((0.8116, -1.0, None), 2, ["0.81", "-1.00", ""]),
        ((-9.0, 7.0, 0.0), 3, ["-9", "7", "0"]),
        ((-0.0001, 12.25), 3, ["0.00", "12.25"]),
        ((0.05, 0.001), 3, ["0.0500", "0.0010"]),
        ((1234.56, math.inf), 3, ["1235", "∞"]),
        ((None,), 3, [""]),
    ],
)
def test_figures_of_a_map_share_their_decimals(values, digits, told):
    assert value_texts(Grid("", (values,), (("",) * len(values),)), digits) == [told]


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (True, "yes"),
        (False, "no"),
        ("a", "a"),
        (3, "3"),
        (3.0, "3"),
        (0.123456, "0.1235"),
        (1e-12, "1e-12"),
        (123456.7, "123457"),
        (math.nan, "not a number"),
        (-math.inf, "-∞"),
        (0, "0"),
        (-2.5, "-2.5"),
        (np.bool_(True), "yes"),
        (np.int64(3), "3"),
        (np.float64(0.123456), "0.1235"),
    ],
)
def test_cells_of_tables(value, text):
    assert cell_text(value) == text


def test_columns_of_numbers_are_flush_right():
    assert numeric_columns(TABLE) == (False, False, True, True)
    assert numeric_columns(Table("", ("a", "b"), ((np.int64(1), np.True_),))) == (True, False)
    assert numeric_columns(Table("", ("a", "b"), ())) == (False, False)


def test_exits_are_signed_numbers():
    assert [exit_reward(mark) for mark in ("+1", "-0.5", "+0", "1", "", "end", "-", "+x")] == [
        1.0,
        -0.5,
        0.0,
        None,
        None,
        None,
        None,
        None,
    ]


def test_an_exit_tells_its_value_only_if_its_mark_does_not():
    assert [
        shown_value(*pair)
        for pair in ((0.0, "+1"), (1.0, "+1"), (0.5, "+1"), (0.0, "↑"), (None, ""))
    ] == [None, None, 0.5, 0.0, None]
    assert value_texts(Grid("", ((0.0, -13.0, 0.5),), (("+1", "→", "-0.5"),))) == [
        ["", "-13.00", "0.50"]
    ]
    alone = cell_colours(Grid("", ((0.0, -13.0, -12.0),), (("+0", "→", "→"),)))
    assert alone(0.0, "+0") == (INK, 0.15)
    assert alone(-12.0, "→")[1] < 0.1  # the exit's 0 does not stretch the scale


def test_a_map_is_spoken():
    assert grid_as_text(Grid("", ((1.0, None),), (("↑", ""),))) == "↑ 1, wall"


def test_gaps_bands_and_scales_of_curves():
    """A curve without an interval has no band; NaN and, on a logarithmic axis, zero are gaps; few
    points are their own ticks.
    """
    svg = chart_svg(
        Chart(
            "c",
            "n",
            "y",
            {"a": [(5, 1, 0.5, 2), (10, math.nan, 0, 0), (20, 3, 2, 4)], "b": [(5, 0, 0, 0)]},
            log_x=True,
            log_y=True,
        )
    )
    assert svg.count("opacity: 0.18") >= 1 and "nan" not in svg.lower()
    assert all(f">{tick}<" in svg for tick in (5, 10, 20))
    axes = Figure().add_subplot()
    draw_curves(
        axes,
        Chart(
            "c", "n", "y", {"a": [(2, 0, 0, 0), (1, 10, 10, 10), (3, math.inf, 1, 1)]}, log_y=True
        ),
        light_inks(),
    )
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3] and np.array_equal(
        axes.lines[0].get_ydata(), [10, math.nan, math.nan], equal_nan=True
    )
    assert "opacity: 0.18" not in chart_svg(
        Chart("c", "n", "y", {"a": [(5, 1, 1, 1), (10, 2, 2, 2)]})
    )
    assert chart_svg(Chart("c", "n", "y", {})).startswith("<svg")


def test_words_and_numbers_do_without_matplotlib():
    code = (
        "import sys, laurel.report.exhibit_page; sys.exit(', '.join({'torch', 'matplotlib',"
        " 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_same_exhibit_is_drawn_the_same():
    assert grid_svg(GRID) == grid_svg(GRID) and chart_svg(CHART) == chart_svg(CHART)


def test_sizes_follow_the_map():
    def of(columns, rows):
        return Grid("", ((1.0,) * columns,) * rows, (("",) * columns,) * rows)

    assert panel_columns(of(4, 3)) == 1 and panel_columns(of(12, 4)) == 2
    assert map_height(of(4, 3)) < map_height(of(4, 5)) and map_height(of(2, 40)) < 6
    assert legend_columns(["ab", "cd", "ef"]) == 3 and legend_columns(["a" * 40, "b"]) == 1


def test_pictures_of_every_format(tmp_path):
    for suffix, beginning in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / f"all{suffix}"
        write_figure(EXHIBIT, path)
        assert path.read_bytes().startswith(beginning)
    svg = (tmp_path / "all.svg").read_text(encoding="utf-8")
    Xml.fromstring(svg)
    for text in ("a small world", "step reward -2", "regret", "cloning", "+1"):
        assert f">{text}<" in svg
    assert (
        "var(" not in svg
        and not any(code in svg for code in VARIABLES)
        and light_inks()[POSITIVE] in svg
    )
    with pytest.raises(UsageError, match="nothing to draw"):
        write_figure(Exhibit("a", "b", {}, tables=(TABLE,)), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_picture_grows_with_its_panels(tmp_path):
    def size(count):
        write_figure(Exhibit("a", "b", {}, grids=(GRID,) * count), tmp_path / "p.png")
        return struct.unpack(">II", (tmp_path / "p.png").read_bytes()[16:24])

    one, four, five = size(1), size(4), size(5)
    assert four[0] == 2 * one[0] and five[0] == 3 * one[0] and four[1] > one[1]
