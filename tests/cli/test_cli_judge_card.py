"""`laurel judge calibrate` and `compare`: printed in 100 columns, as one page, as JSON."""

import json
import re

import pytest

from laurel.cli.main import main


@pytest.fixture
def run(capsys):
    """`laurel judge ...`: exit code, stdout, stderr."""

    def call(*words):
        code = main(["judge", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def answers(folder, statuses, judge="m", **beside):
    """A folder of verdicts {item: (a first, b first)} with judgements.jsonl."""
    folder.mkdir()
    rows = [
        {"id": item, "judge": judge, "order": order, "repeat": 0, "status": status, "chance": None}
        for item, both in statuses.items()
        for status, order in zip(both, ([0, 1], [1, 0]), strict=True)
    ]
    items = [{"id": i, "prompt": i, "gold": "a", "models": ["x", "y"], **beside} for i in statuses]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


def test_calibrate_prints_a_card_and_writes_page_and_figures(run, tmp_path):
    statuses = {f"i{k}": ("a", "a" if k % 3 else "b") for k in range(9)}
    statuses["bad"] = ("invalid", "error")
    source = answers(tmp_path / "judge<b>", statuses, lengths=[3, 2])
    page, figures = tmp_path / "card.html", tmp_path / "card.json"
    code, out, _ = run("calibrate", source, "--html", page, "--json", figures)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    assert re.search(r"same verdict in both orders +0\.667 n=9", out)
    assert "15 a, 3 b, 1 error, 1 invalid" in " ".join(out.split())
    html = page.read_text()
    assert "judge&lt;b&gt;" in html and "judge<b>" not in html
    assert html.count("<svg") >= 3 and "prefers-color-scheme: dark" in html
    assert not re.search(r"<(script|img|link|iframe)\b|https?://(?!www.w3.org)|url\((?!#)", html)
    (made,) = json.loads(figures.read_text())["cards"]
    assert made["judges"][0]["answers"] == {"a": 15, "b": 3, "error": 1, "invalid": 1}
    assert made["judges"][0]["self_preference"]["value"] is None
    assert made["judges"][0]["self_preference"]["reason"]
    code, out, _ = run("calibrate", source, "--json", "-")
    assert json.loads(out)["cards"] == [made]


def test_people_and_few_labels(run, tmp_path):
    source = answers(tmp_path / "j", {f"i{k}": ("a", "a") for k in range(60)})
    votes = tmp_path / "votes.jsonl"
    rows = [{"id": f"i{k}", "label": "ab"[k % 4 == 0], "rater": w} for k in range(60) for w in "uv"]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run("calibrate", source, "--votes", votes, "--labels", "20")
    assert re.search(r"m with a person +90/120 = 0\.7500", out)
    assert re.search(r"a person with a person +60/60 = 1\.0000", out)
    assert "people, 20" in out and re.search(r"^x +1\.00 \[", out, re.MULTILINE)


def test_compare_joins_sources_by_item(run, tmp_path):
    """Gold a on all: m right on the first six, n on the last: 6 to 1 alone, exact p .125."""
    one = answers(
        tmp_path / "one", {f"i{k}": ("a",) * 2 if k < 6 else ("b",) * 2 for k in range(7)}
    )
    two = answers(
        tmp_path / "two", {f"i{k}": ("b",) * 2 if k < 6 else ("a",) * 2 for k in range(7)}, "n"
    )
    code, out, _ = run("compare", one, two)
    assert code == 0 and re.search(r"m +n +0\.000 n=7 .*6 : 1 +0\.125", out)
    _, out, _ = run("compare", one, one)
    assert re.search(r"m +m \(one\) +1\.000 n=7", out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("calibrate", "{one}", "--judges", "n"), "no judge `n`"),
        (("compare", "{one}"), "only one judge"),
        (("compare", "{one}", "{other}"), "no item in common"),
        (("calibrate", "{one}", "--labels", "1"), "two items are the least"),
        (("calibrate", "{one}", "--html", "x.txt"), "ends in no format"),
        (("calibrate", "{one}", "--votes", "{votes}"), "no vote is about an item"),
        (("calibrate", "nowhere"), "no such file or folder"),
        (("calibrate", "{battles}"), "no verdicts of a judge"),
    ],
)
def test_what_cannot_be_done_is_told(run, tmp_path, words, told):
    places = {
        "one": answers(tmp_path / "one", {"i": ("a", "a")}),
        "other": answers(tmp_path / "other", {"o": ("a", "a")}),
        "votes": tmp_path / "votes.jsonl",
        "battles": tmp_path / "battles.csv",
    }
    battles = "question_id,model_a,model_b,winner,judge\n1,x,y,tie,arena_user_1\n"
    places["battles"].write_text(battles)
    places["votes"].write_text('{"id": "stranger", "label": "a"}\n')
    code, _, err = run(*(word.format(**places) for word in words))
    assert code == 2 and told in " ".join(err.split())


def test_published_tables(run, shared):
    _, out, _ = run("calibrate", shared("data/mtbench"), "--labels", "200")
    for line in (
        r"GPT-4 with a person +886/1343 = 0\.6597 \[.*\] +66%",
        r"GPT-4 with a person, no ties +727/859 = 0\.8463 \[.*\] +85%",
        r"a person with a person +454/721 = 0\.6297 \[.*\] +63%",
        r"a person with a person, no ties +388/479 = 0\.8100 \[.*\] +81%",
    ):
        assert re.search(line, out), line
    assert "6 systems are too few" in out and max(map(len, out.splitlines())) <= 100
    _, out, _ = run("calibrate", shared("data/llmbar/Natural"))
    assert re.search(r"same verdict in both +0\.620 n=100 +0\.140 n=100 +0\.930 n=100", out)


def test_people_and_gpt4_order_59_systems(run, shared):
    _, out, _ = run("calibrate", shared("data/llmfao"), "--judges", "GPT-4", "--json", "-")
    (judge,) = json.loads(out)["cards"][0]["judges"]
    rho, tau = judge["rho"], judge["tau"]
    assert (round(rho["value"], 4), round(tau["value"], 4), rho["n"]) == (0.7309, 0.5371, 59)
    assert rho["low"] < 0.7309 < rho["high"] and tau["low"] < 0.5371 < tau["high"]
    assert judge["self_preference"]["low"] > 0  # GPT-4 likes OpenAI's models more than people do
