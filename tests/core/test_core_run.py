"""The run directory: never overwritten, never mixed, whole after a kill at any moment."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from laurel.core.errors import LaurelError, UsageError
from laurel.core.files import read_json, read_lines, write_atomic
from laurel.core.run import FREE_TO_CHANGE, RUN_FILES, Run
from laurel.core.sinks import SINKS, check_sinks

CONFIG = {
    "algorithm": "grpo",
    "learning_rate": 0.001,
    "max_steps": 4,
    "stop": None,
    "rewards": ["exact"],
}


def test_a_new_run_records_what_it_is(tmp_path):
    run = Run.create(tmp_path / "deep" / "run", CONFIG, resume=False)
    again = Run(run.folder)
    assert again.id == run.id and len(run.id) == 32
    assert again.config() == CONFIG
    assert {"created", "command", "laurel", "python", "torch"} <= set(again.facts)
    run.note({"threads": 1})
    assert Run(run.folder).facts["threads"] == 1


def test_two_runs_have_two_ids(tmp_path):
    assert (
        Run.create(tmp_path / "a", CONFIG, resume=False).id
        != Run.create(tmp_path / "b", CONFIG, resume=False).id
    )


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    Run.create(tmp_path, CONFIG, resume=False).log(1, {"reward": 0.5})
    with pytest.raises(UsageError, match=r"--resume true.*--output_dir"):
        Run.create(tmp_path, CONFIG, resume=False)
    assert Run(tmp_path).metrics()[0]["reward"] == 0.5


def test_foreign_files_are_never_written_over(tmp_path):
    for name in RUN_FILES:
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine\n")
        for resume in (False, True):
            if not (
                resume and name == "config.yaml"
            ):  # alone it is what a kill leaves of a run's first moment
                with pytest.raises(UsageError, match=f"`{name}`.*would be written over"):
                    Run.create(folder, CONFIG, resume=resume, say=print)
        assert (folder / name).read_text() == "mine\n" and [
            path.name for path in folder.iterdir()
        ] == [name]
    with pytest.raises(UsageError, match="a file, not a folder"):
        Run.create(tmp_path / "config" / "config.yaml", CONFIG, resume=False)


def test_resume_without_a_run_starts_one(tmp_path):
    said = []
    run = Run.create(tmp_path / "new", CONFIG, resume=True, say=said.append)
    assert "nothing to resume" in said[0] and run.id
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml").write_text(
        "max_steps: 4\n"
    )  # a kill between the two files of a new run
    assert Run.create(tmp_path / "killed", CONFIG, resume=True, say=said.append).id


def test_A50_resume_says_what_changes_and_refuses_another_experiment(tmp_path):
    """A50: a changed hyper-parameter is named and refused; what is free to change is allowed and
    said.
    """
    run = Run.create(tmp_path, {**CONFIG, "resume": False}, resume=False)
    run.close()
    with pytest.raises(UsageError) as caught:
        Run.create(
            tmp_path,
            {**CONFIG, "learning_rate": 0.01, "rewards": ["math"], "max_steps": 9, "resume": True},
            resume=True,
        )
    assert "learning_rate 0.001 -> 0.01" in str(
        caught.value
    ) and "rewards ['exact'] -> ['math']" in str(caught.value)
    assert "max_steps 4" not in str(caught.value)
    said = []
    same = Run.create(
        tmp_path, {**CONFIG, "max_steps": 9, "resume": True}, resume=True, say=said.append
    )
    assert same.id == run.id and said[1] == "  max_steps: 4 -> 9"
    assert Run(tmp_path).config()["max_steps"] == 9 and Run(tmp_path).facts["resumed"][0][
        "changed"
    ] == {"max_steps": [4, 9]}


def test_K15_a_model_put_into_a_run_that_saved_none_is_not_written_over(tmp_path):
    """The kind: somebody else's files where a run will write. Fails on a resume that saves over
    them.
    """
    run = Run.create(tmp_path, CONFIG, resume=False)
    run.close()
    run.model.mkdir()
    with pytest.raises(UsageError, match="has not saved a model yet, and there is one"):
        Run.create(tmp_path, CONFIG, resume=True, say=print)
    run.note({"saving": True})  # what a run writes down before it saves
    assert Run.create(tmp_path, CONFIG, resume=True, say=print).id == run.id


READER = """
import sys
from laurel.core.errors import UsageError
from laurel.core.run import Run
try:
    run = Run.create(sys.argv[1], {"max_steps": 1}, resume=sys.argv[2] == "resume", say=print)
    print("in", flush=True)
    sys.stdin.read() if sys.argv[3] == "stay" else None
except UsageError as error:
    print("out:", error)
"""


def second(folder, resume="resume", stay="leave"):
    command = [sys.executable, "-c", READER, str(folder), resume, stay]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_K15_one_writer_a_folder_until_it_dies(tmp_path):
    """The kind: two runs, or a run and a resume, mix their lines. The lock goes with its holder,
    kill -9 included.
    """
    holder = second(tmp_path / "run", "new", "stay")
    assert holder.stdout.readline().strip() == "in"
    for resume in ("resume", "new"):
        said = second(tmp_path / "run", resume).communicate(timeout=60)[0]
        assert (
            "already holds a run" in said if resume == "new" else f"process {holder.pid} on" in said
        )
    holder.kill()
    holder.wait()
    assert "in\n" in second(tmp_path / "run").communicate(timeout=60)[0]


def test_K15_within_a_process_too(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    with pytest.raises(UsageError, match="this very process is writing"):
        Run.create(tmp_path, CONFIG, resume=True, say=print)
    run.close()
    again = Run.create(tmp_path, CONFIG, resume=True, say=print)
    again.close()
    again.close()
    assert Run.create(tmp_path, CONFIG, resume=True, say=print).id == run.id


def test_a_run_that_failed_before_its_first_step_leaves_nothing(tmp_path):
    run = Run.create(tmp_path / "deep" / "run", CONFIG, resume=False)
    run.withdraw()
    assert not run.folder.exists()
    started = Run.create(run.folder, CONFIG, resume=False)
    started.log(1, {"reward": 1.0})
    started.withdraw()
    assert started.metrics() and (run.folder / "run.json").exists()
    resumed = Run.create(run.folder, CONFIG, resume=True, say=print)
    resumed.withdraw()
    assert (run.folder / "run.json").exists()


def test_K13_what_was_read_and_has_changed_is_told_and_not_taken(tmp_path):
    """The kind: a resumed run goes on with edited data or rewards under the same name."""
    Run.create(
        tmp_path,
        CONFIG,
        resume=False,
        inputs={"dataset d.jsonl": "8 rows, aa", "rewards r.py:f": "bb"},
    ).close()
    edited = {"dataset d.jsonl": "9 rows, cc", "rewards r.py:f": "bb"}
    with pytest.raises(
        UsageError, match=r"dataset d.jsonl \(8 rows, aa -> 9 rows, cc\).*`--resume anyway`"
    ) as caught:
        Run.create(tmp_path, CONFIG, resume=True, inputs=edited, say=print)
    assert "r.py" not in str(caught.value)
    said = []
    run = Run.create(tmp_path, CONFIG, resume="anyway", inputs=edited, say=said.append)
    run.close()
    assert "  dataset d.jsonl: 8 rows, aa -> 9 rows, cc" in said
    assert run.facts["resumed"][-1]["changed"] == {"dataset d.jsonl": ["8 rows, aa", "9 rows, cc"]}
    assert Run.create(tmp_path, CONFIG, resume=True, inputs=edited, say=print).id == run.id, (
        "agreed to once, it is what the run reads"
    )


def test_an_option_newer_than_the_run_does_not_stop_it(tmp_path):
    Run.create(tmp_path, CONFIG, resume=False).close()
    assert Run.create(tmp_path, {**CONFIG, "brand_new": 1}, resume=True, say=print).id


def test_what_is_free_to_change_exists():
    from laurel.core.config import TrainConfig

    assert set(FREE_TO_CHANGE) <= set(TrainConfig.model_fields)


def test_A48_lines_of_another_run_are_refused(tmp_path):
    """A48: every line carries the run id; a stale line is an error naming file and line, not
    data.
    """
    one, two = (
        Run.create(tmp_path / "a", CONFIG, resume=False),
        Run.create(tmp_path / "b", CONFIG, resume=False),
    )
    one.log(1, {"reward": 0.0})
    two.log(1, {"reward": 1.0})
    (one.folder / "metrics.jsonl").write_bytes(
        (one.folder / "metrics.jsonl").read_bytes() + (two.folder / "metrics.jsonl").read_bytes()
    )
    for read in (one.metrics, lambda: one.truncate(5)):
        with pytest.raises(LaurelError, match=r"metrics.jsonl:2: written by another run"):
            read()
    assert len((one.folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_lines_are_plain_json_whatever_the_numbers_are(tmp_path):
    import numpy as np
    import torch

    run = Run.create(tmp_path, CONFIG, resume=False)
    run.log(1, {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": math.nan, "d": math.inf, "e": 3})
    run.log_samples(
        1,
        [
            {
                "completion": "é\u2028\ud800",
                "ids": (1, 2),
                "logps": [-0.5, -math.inf],
                "weight": torch.tensor(1),
            }
        ],
    )
    strict = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert {k: strict[0][k] for k in "abcde"} == {"a": 0.5, "b": 2.0, "c": None, "d": None, "e": 3}
    (line,) = run.samples()
    assert (
        line["completion"] == "é\u2028\ud800"
        and line["logps"] == [-0.5, None]
        and line["ids"] == [1, 2]
        and line["weight"] == 1
    )


def test_samples_of_one_step(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    for step in (1, 2):
        run.log_samples(step, [{"sample": i} for i in range(3)])
    assert (
        len(run.samples()) == 6
        and {line["step"] for line in run.samples(2)} == {2}
        and run.samples(3) == []
    )


def unstamped(run, name):
    return [
        {k: v for k, v in line.items() if k not in ("run", "time")}
        for _, line in read_lines(run.folder / name)
    ]


def test_truncate_makes_a_resumed_run_equal_the_unbroken_one(tmp_path):
    """A45: after a kill in step 4 and a resume from step 2 the files hold the same lines, in the
    same order.
    """

    def steps(run, numbers):
        for step in numbers:
            run.log_samples(step, [{"completion": f"{step}.{i}"} for i in range(2)])
            run.log(step, {"reward": step / 10})

    unbroken, broken = (
        Run.create(tmp_path / "u", CONFIG, resume=False),
        Run.create(tmp_path / "b", CONFIG, resume=False),
    )
    steps(unbroken, range(1, 7))
    steps(broken, range(1, 4))
    broken.log_samples(4, [{"completion": "4.0"}])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(broken.folder / name, "a") as file:
            file.write('{"run": "half-writ')
    assert len(broken.metrics()) == 3, "a half-written last line is passed over by readers"
    broken.close()
    broken = Run.create(tmp_path / "b", CONFIG, resume=True, say=print)
    broken.truncate(2)
    steps(broken, range(3, 7))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert unstamped(broken, name) == unstamped(unbroken, name)


def test_every_cut_of_the_last_line_is_survived(tmp_path):
    """A kill may stop the write after any byte."""
    run = Run.create(tmp_path, CONFIG, resume=False)
    run.log(1, {"reward": 0.5})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    run.log(2, {"reward": 0.75})
    both = (tmp_path / "metrics.jsonl").read_bytes()
    for cut in range(len(whole), len(both) + 1):
        (tmp_path / "metrics.jsonl").write_bytes(both[:cut])
        assert len(run.metrics()) == (2 if cut >= len(both) - 1 else 1)
        run.truncate(1)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_damage_in_the_middle_is_not_passed_over(tmp_path):
    run = Run.create(tmp_path, CONFIG, resume=False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(LaurelError, match=r"metrics.jsonl:2"):
        run.metrics()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(LaurelError, match=r"run\.json"):
        Run(tmp_path)


WRITER = """
import sys
from laurel.core.files import write_atomic
for i in range(10**6):
    write_atomic(sys.argv[1], (b"%d" % (i % 10)) * 200_000)
"""


def test_kill_in_write(tmp_path):
    """kill -9 at random moments of an atomic write: the file is always one whole version."""
    path, rng = tmp_path / "state", random.Random(0)
    write_atomic(path, "9" * 200_000)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        before, deadline = path.stat().st_mtime_ns, time.monotonic() + 20
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(timeout=10)
        content = path.read_bytes()
        assert len(content) == 200_000 and len(set(content)) == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "state.json"
    write_atomic(path, "{}")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert read_json(path) == {} and os.listdir(tmp_path) == ["state.json"]
    assert read_json(tmp_path / "absent.json") is None


def test_sinks_that_cannot_work_are_refused_before_the_run_exists(tmp_path):
    with pytest.raises(UsageError, match="tensorboard"):
        Run.create(tmp_path / "a", {**CONFIG, "report_to": ["tensorbord"]}, resume=False)
    absent = [name for name in SINKS if find_spec(name) is None]
    for name in absent:
        with pytest.raises(UsageError, match=f"pip install {name}"):
            Run.create(tmp_path / "a", {**CONFIG, "report_to": [name]}, resume=False)
    assert not (tmp_path / "a").exists()
    check_sinks(None)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_receives_what_the_file_receives(tmp_path):
    run = Run.create(tmp_path, {**CONFIG, "report_to": ["tensorboard"]}, resume=False)
    run.connect()
    run.log(1, {"reward": 0.5})
    run.close()
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


class Down:
    """A dashboard whose server is gone."""

    def log(self, step, metrics):
        raise ConnectionError("server is gone")

    def close(self):
        raise AssertionError("closed although it was switched off")


def test_A59_a_sink_that_fails_is_switched_off_and_the_run_goes_on(tmp_path, capsys):
    """A59: hooks are isolated; the file keeps everything."""
    run = Run.create(tmp_path, CONFIG, resume=False)
    run.sinks = [Down()]
    for step in (1, 2):
        run.log(step, {"reward": 0.1})
    run.close()
    assert len(run.metrics()) == 2 and capsys.readouterr().err.count("server is gone") == 1


def test_the_run_directory_needs_no_torch():
    code = (
        "import sys, laurel.core.run, laurel.core.metrics; sys.exit('torch' in sys.modules or"
        " 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
