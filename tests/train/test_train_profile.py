"""The profile: phases that add up to the step, counts worked by hand, nothing of the training
changed, a section in the report.
"""

import json
import time

import pytest
from toy import make_toy, sevens, toy_config

from laurel.report.page import write_report
from laurel.train.loop import train
from laurel.train.profile import PHASES, average_profile
from laurel.train.session import Clock, phase


def slow_sevens(completions, **columns):
    """Sleeps: 30 ms in which no core is used."""
    time.sleep(0.03)
    return sevens(completions)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def profile_of(run):
    return json.loads((run.folder / "profile.json").read_text())


def test_phases_inside_phases_add_up():
    """outer 20 ms + inner 30 ms + outer 10 ms, 5 ms of nobody's: 30, 30 and 5, whatever the
    nesting.
    """
    clock = Clock()
    clock.start()
    began = time.perf_counter()
    with clock("outer"):
        time.sleep(0.02)
        clock.run("inner", time.sleep, 0.03)
        time.sleep(0.01)
    time.sleep(0.005)
    spent = clock.stop()
    assert sum(spent.values()) == pytest.approx(time.perf_counter() - began, abs=2e-3)
    assert spent["inner"] >= 0.03 and spent["outer"] >= 0.03 and spent["other"] >= 0.005
    assert spent["outer"] < 0.03 + 0.03  # the inner one is not counted twice


def test_a_phase_that_breaks_is_closed():
    class Holder:
        clock = Clock()

    @phase("weigh")
    def breaks(setup):
        raise ValueError

    with pytest.raises(ValueError):
        breaks(Holder)
    assert Holder.clock.open == ["other"] and "weigh" in Holder.clock.stop()


@pytest.mark.parametrize("name", ["grpo", "sft", "es", "ppo"])
def test_phases_of_a_run_add_up_to_its_steps(name, toy, tmp_path):
    more = {"sft": {"reward": None}, "es": {"population": 2}}.get(name, {})
    run = train(
        name, toy_config(toy, tmp_path / name, max_steps=4, profile=True, **more), quiet=True
    )
    profile, lines = profile_of(run), run.metrics()
    parts = profile["phases"]
    assert profile["steps"] == 3 and set(parts) <= set(PHASES)  # the first step warms up
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(profile["seconds"])
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0)
    assert profile["seconds"] == pytest.approx(sum(line["seconds/step"] for line in lines[1:]) / 3)
    trained = {"forward", "backward", "optimiser"} if name != "es" else {"optimiser"}
    assert trained <= set(parts) and all(part["seconds"] > 0 for part in parts.values())
    assert ("sample" in parts) == (name != "sft")
    assert profile["roofline"] + profile["idle"] + profile["overhead"] == pytest.approx(1.0)
    assert 0 < profile["roofline"] < 1


def test_waiting_is_idle_and_in_the_phase_that_waits(toy, tmp_path):
    """A reward that sleeps 30 ms: at least that long a step, in `score`, and not on a core."""
    config = toy_config(
        toy, tmp_path / "run", max_steps=3, profile=True, rewards=[f"{__file__}:slow_sevens"]
    )
    score = profile_of(train("grpo", config, quiet=True))["phases"]["score"]
    assert (
        score["seconds"] >= 0.03
        and score["idle"] >= 0.03 / (score["seconds"] / score["share"]) * 0.9
    )


def test_the_profile_changes_nothing_and_is_written_only_when_asked(toy, tmp_path):
    runs = [
        train("grpo", toy_config(toy, tmp_path / str(on), max_steps=4, profile=on), quiet=True)
        for on in (True, False)
    ]
    assert runs[0].samples() and [(s["ids"], s["logps"]) for s in runs[0].samples()] == [
        (s["ids"], s["logps"]) for s in runs[1].samples()
    ]
    assert (runs[0].folder / "profile.json").exists() and not (
        runs[1].folder / "profile.json"
    ).exists()


def test_shares_of_a_step_by_hand():
    """Two steps, 4 s, of which the machine needs 1 s; 1 s idle. The other half is overhead."""
    totals = {
        "steps": 2.0,
        "bound": 1.0,
        "operations": 1e9,
        "sampled": 40.0,
        "trained": 80.0,
        "padding": 10.0,
        "computed": 90.0,
        "seconds/sample": 3.0,
        "idle/sample": 1.0,
        "seconds/other": 1.0,
        "idle/other": 0.0,
    }
    profile = average_profile(totals)
    assert profile["seconds"] == 2.0 and profile["phases"]["sample"] == {
        "seconds": 1.5,
        "share": 0.75,
        "idle": 0.25,
    }
    assert (profile["roofline"], profile["idle"], profile["overhead"]) == (0.25, 0.25, 0.5)
    assert profile["tokens_per_second"] == {"sampled": 10.0, "trained": 20.0} and profile[
        "padding_share"
    ] == pytest.approx(1 / 9)


def test_the_report_shows_the_phases(toy, tmp_path):
    run = train("grpo", toy_config(toy, tmp_path / "run", max_steps=3, profile=True), quiet=True)
    page = write_report(run.folder).read_text()
    section = page.partition("Where the time of a step goes</h2>")[2].partition("</section>")[0]
    assert all(f'<th scope="row">{name}</th>' in section for name in (*PHASES, "step"))
    assert "roofline" in section and "idle" in section and "overhead" in section
    (run.folder / "profile.json").unlink()
    assert "Where the time of a step goes" not in write_report(run.folder).read_text()
