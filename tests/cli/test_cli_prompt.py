"""`laurel prompt`: fit, choose, candidates and report, from files, as a user types them."""

import json

import pytest

from laurel.cli.main import main
from laurel.data.read import read_records
from laurel_prompts import fit
from laurel_prompts.models import Logistic, Rates
from laurel_prompts.synthetic import synthetic_log


@pytest.fixture
def few_models(monkeypatch):
    """The search for a model, shortened to two: what is printed is the point. `folder` and the
    pages' blocks search them all.
    """
    monkeypatch.setattr(fit, "candidate_models", lambda: [Rates(), Logistic("heads", 100.0)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with log.jsonl, prompts.jsonl, queries.jsonl and a fitted predictor in p/."""
    folder = tmp_path_factory.mktemp("prompt")
    log, _ = synthetic_log(1200)
    with (folder / "log.jsonl").open("w") as file:
        for s, query in enumerate(log.queries):
            for p, name in enumerate(log.names):
                row = {
                    "query_id": s,
                    "query": query,
                    "prompt": name,
                    "reward": log.reward_SP[s, p],
                    "cost": 10.0 * (p + 1),
                    "response": "It is 7." if log.reward_SP[s, p] else "Hm?",
                    "split": "test" if log.test_S[s] else "train",
                }
                file.write(json.dumps(row) + "\n")
    rows = [
        {"name": name, "prompt": text} for name, text in zip(log.names, log.prompts, strict=True)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"query": query}) + "\n" for query in log.queries[-20:])
    )
    words = [
        "prompt",
        "fit",
        str(folder / "log.jsonl"),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--output-dir",
        str(folder / "p"),
    ]
    assert main(words) == 0
    return folder


def test_fit_says_what_it_learned(folder, capsys, few_models):
    assert (
        main(["prompt", "fit", str(folder / "log.jsonl"), "--output_dir", str(folder / "again")])
        == 0
    )
    said = capsys.readouterr()
    assert (
        "gain over it" in said.out and "default prompt   p0" in said.out and "log loss" in said.err
    )
    assert (folder / "again" / "predictor.json").is_file()


def test_choose_from_words_and_from_a_file(folder, capsys):
    assert (
        main(
            [
                "prompt",
                "choose",
                str(folder / "p"),
                "A garden with 3 rows of seeds",
                "A train at some speed",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "A garden with 3" in said and ("predicted better" in said or "default" in said)
    out = folder / "chosen.csv"
    assert (
        main(
            [
                "prompt",
                "choose",
                str(folder / "p"),
                str(folder / "queries.jsonl"),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    rows = [row for _, row in read_records(out)]
    assert len(rows) == 20 and set(rows[0]) == {
        "query",
        "name",
        "prompt",
        "predicted",
        "default",
        "why",
    }
    assert len({row["name"] for row in rows}) > 1
    dear = folder / "dear.jsonl"
    assert (
        main(
            [
                "prompt",
                "choose",
                str(folder / "p"),
                str(folder / "queries.jsonl"),
                "--cost-weight",
                "0.05",
                "--out",
                str(dear),
            ]
        )
        == 0
    )
    assert {row["name"] for _, row in read_records(dear)} == {"p0"}


def test_candidates_are_ranked_and_written(folder, capsys):
    out = folder / "candidates.jsonl"
    words = [
        "prompt",
        "candidates",
        str(folder / "log.jsonl"),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--predictor",
        str(folder / "p"),
    ]
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    names = [row["name"] for _, row in read_records(out)]
    assert {
        "p0",
        "chain-of-thought",
        "plan-and-solve",
        "tree-of-thought",
        "decomposition",
        "few-shot",
    } <= set(names)
    assert "unseen: a guess" in said and "try them on some queries" in said
    assert (
        main(
            [
                "prompt",
                "choose",
                str(folder / "p"),
                str(folder / "queries.jsonl"),
                "--candidates",
                str(out),
                "--unseen",
            ]
        )
        == 0
    )
    assert main([*words, "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert "go together" in capsys.readouterr().err


def test_report_prints_writes_a_page_and_json(folder, capsys, monkeypatch, few_models):
    monkeypatch.setenv("COLUMNS", "120")
    words = [
        "prompt",
        "report",
        str(folder / "log.jsonl"),
        "--prompts",
        str(folder / "prompts.jsonl"),
    ]
    assert main([*words, "--page", str(folder / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "default: p0" in said and "credible" in said and max(map(len, said.splitlines())) <= 120
    page = (folder / "page.html").read_text()
    assert (
        "Which prompt for which query" in page
        and "<script" not in page
        and "chosen per query" in page
    )
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["its own split"]["rows"]["chosen"]["value"][0] > 0.6
    assert "r(q, a)" in data["its own split"]["reward_models"]


def test_wrong_usage_is_told_before_anything_is_fitted(folder, capsys, tmp_path):
    cases = {
        ("report", str(tmp_path / "none.jsonl")): "no such file",
        ("report", str(folder / "log.jsonl"), "--dataset", "gsm8k"): "only the authors' folder",
        ("report", str(folder / "log.jsonl"), "--page", "page.doc"): "End it in .html",
        ("choose", str(tmp_path), "q"): "no saved predictor",
        (
            "fit",
            str(folder / "log.jsonl"),
            "--output_dir",
            str(tmp_path / "x"),
            "--features",
            "none.npz",
        ): "no file of vectors",
        ("choose", str(folder / "p"), "q", "--cost_weight", "-2"): "no price",
        ("choose", str(folder / "p"), " "): "a query is blank",
        ("choose", str(folder / "p"), "a.jsonl", "b.jsonl"): "one file of queries",
    }
    for words, said in cases.items():
        assert main(["prompt", *words]) == 2, words
        assert said in capsys.readouterr().err, words


def test_the_authors_folder_must_be_told_which_set(shared, capsys):
    assert main(["prompt", "report", str(shared("data/prompt-oirl"))]) == 2
    assert "gsm8k|mawps" in capsys.readouterr().err
