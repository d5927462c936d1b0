"""Real servers killed among their verdicts, and who asks them: the files are the same."""

import sys
from pathlib import Path

import pytest
from judge_models import chat_model, direct_next
from judge_runs import PROMPT, Served, killed_and_continued

from laurel.cli.main import main
from laurel.judge.judge import Judge, Pair
from laurel.judge.member import TOP
from laurel.judge.options import make_judge

sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import begin
from vllm_server import OPTIONS, PYTHON, SETTINGS, needs_vllm


@pytest.fixture
def model(tmp_path):
    chat_model().save(tmp_path / "model")
    return tmp_path / "model"


class Warm(Served):
    """`laurel serve` in a process that need not import it all anew."""

    def serve(self):
        command, _ = self.command()
        self.process = begin(served, command[3:], log=self.folder / "serve.log")

    def kill(self):
        self.process.kill()
        self.process.join()


def served(words):
    """The command, in a process of its own."""
    sys.exit(main(words))


def test_laurel_serve_killed_among_verdicts(tmp_path, model):
    killed_and_continued(Warm(tmp_path, model, 40))


@pytest.mark.whole
def test_laurel_serve_killed_among_two_thousand_verdicts(tmp_path, shared):
    """The real model of stories, whose next word is the label."""
    model = shared("models/tinystories-656k")
    killed_and_continued(Stories(tmp_path, model, 1000, api="completions"))


class Stories(Served):
    """Labels that a base model says."""

    prompt = PROMPT.replace("{A: a, B: b}", "{all: a, an: b}")


PAIRS = [Pair(f"p{i}", f"Count to {i}.", f"1 to {i}", f"{i} to 1") for i in range(4)]


class Vllm(Served):
    """The real vLLM."""

    def command(self):
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        words += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "1024"]
        words += ["--generation-config", "vllm", *OPTIONS[:2]]
        return [str(PYTHON), *words], SETTINGS


class TransformersServe(Served):
    """`transformers serve`, which knows its model by its folder."""

    name, each = "", 4

    def command(self):
        command = [str(Path(sys.executable).parent / "transformers"), "serve", str(self.model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        return command, {"HF_HUB_OFFLINE": "1"}

    def asked(self):
        return None


def by_hand(policy, pair, listed=None):
    """P(first better) of the short prompt in both orders, by transformers; and the mass on none.

    listed: the tokens that a server tells of at most. A label that is not among them counts as the
    last of these does; where neither is, nothing is known.
    """
    chances, missing = [], []
    for first, second in ((pair.first, pair.second), (pair.second, pair.first)):
        said = f"{pair.prompt}\n{first}\n{second}\nWhich is better, A or B?"
        tokens = policy.tokenizer.get_vocab()
        every = direct_next(policy, [{"role": "user", "content": said}], tokens)
        least = 0.0 if listed is None else sorted(every.values())[-listed]
        if max(every["A"], every["B"]) < least:
            chances.append(None)
            missing.append(None)
            continue
        p = {label: max(every[label], least) for label in "AB"}
        chances.append(p["A"] / sum(p.values()))
        missing.append(1 - sum(every[label] for label in "AB" if every[label] >= least))
    return [chances[0], None if chances[1] is None else 1 - chances[1]], missing


@needs_vllm
@pytest.mark.whole
def test_vllm(tmp_path):
    """Both ways of log-probabilities, the soft labels of transformers, killed and started again."""
    policy = chat_model(hidden=128, positions=1024)
    policy.save(tmp_path / "model")
    found = Vllm(tmp_path, tmp_path / "model", 40, patience=400)
    found.serve()
    try:
        url = f"http://127.0.0.1:{found.port}"
        options = {"model": "m", "url": url, "label": "logprobs", "least_mass": 0.0}
        options |= {"prompt": str(tmp_path / "short.yaml"), "patience": 400}
        for way in ("logprob_token_ids", "top_logprobs"):
            with Judge(make_judge(options, "test")) as judge, pytest.MonkeyPatch.context() as patch:
                if way == "top_logprobs":
                    patch.setattr(type(judge.members[0]), "tokenize", lambda self, text: None)
                judged = judge.compare(PAIRS)
                assert judge.ways == {"m": way}
            for pair, one in zip(PAIRS, judged, strict=True):
                listed = None if way == "logprob_token_ids" else TOP
                chances, missing = by_hand(policy, pair, listed)
                assert [v.chance for v in one.verdicts] == pytest.approx(chances, abs=1e-4)
                assert [v.missing_mass for v in one.verdicts] == pytest.approx(missing, abs=1e-4)
    finally:
        found.kill()
    killed_and_continued(found)


@pytest.mark.whole
def test_transformers_serve(tmp_path):
    """It leaves log-probabilities out: samples are drawn, and `how_sure` says so; killed."""
    policy = chat_model(positions=1024)
    policy.causal.generation_config.do_sample = True
    policy.save(tmp_path / "model")
    # its seeds are of the process: answers are its own again where one is asked for at a time
    how = {"label": "samples", "num_samples": 4, "concurrency": 1, "max_tokens": 1}
    found = TransformersServe(tmp_path, tmp_path / "model", 20, **how)
    found.serve()
    try:
        url = f"http://127.0.0.1:{found.port}"
        options = {"model": str(found.model), "url": url, "label": "logprobs", "num_samples": 64}
        options |= {"prompt": str(tmp_path / "short.yaml"), "patience": 120, "max_tokens": 1}
        with Judge(make_judge(options, "test")) as judge:
            judged = judge.compare(PAIRS)
            assert list(judge.ways.values()) == ["samples"]
        for pair, one in zip(PAIRS, judged, strict=True):
            chances, _ = by_hand(policy, pair)
            for verdict, chance in zip(one.verdicts, chances, strict=True):
                read = round(64 * (1 - verdict.missing_mass))
                assert read > 4 and abs(verdict.chance - chance) < 2 / read**0.5
    finally:
        found.kill()
    killed_and_continued(found)
