"""A trained scorer behind the wire."""

import pytest
import torch
from serving import running, tiny
from test_serve_wire import refused

from laurel.core.errors import LaurelError
from laurel.model.card import Card
from laurel.model.scorer import load_scorer
from laurel.reward.load import load_reward


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer") / "body"
    tiny().save(folder)
    return load_scorer(str(folder), seed=3)


def test_scores_are_the_scorers_own(scorer):
    """By prompt and answers, by messages, and by vLLM's two texts; in the order given."""
    answers = ["3", "12", "no idea", "4"]
    wanted = scorer.score([{"prompt": "1+2=", "completion": one} for one in answers])
    with running(scorer=scorer) as served:

        def ask(**body):
            answer = served.client.post("/v1/score", json=body)
            assert answer.status_code == 200, answer.text
            data = answer.json()["data"]
            assert [one["index"] for one in data] == list(range(len(data)))
            return torch.tensor([one["score"] for one in data])

        assert torch.equal(ask(prompt="1+2=", completions=answers), wanted)
        assert torch.equal(ask(model="m", text_1="1+2=", text_2=answers), wanted)
        assert torch.equal(ask(text_1=["1+2="] * 4, text_2=answers), wanted)
        messages = [{"role": "user", "content": "1+2="}]
        replies = [[{"role": "assistant", "content": one}] for one in answers]
        chats = scorer.score([{"prompt": messages, "completion": one} for one in replies])
        assert torch.equal(ask(prompt=messages, completions=replies), chats)
        path = "/v1/score"
        assert "scorer: ask it at /v1/score" in refused(served, prompt="a", status=404)
        assert "go together" in refused(served, path, prompt="a")
        assert "do not pair" in refused(served, path, text_1=["a", "b"], text_2=["c"])
        other = {"model": "x", "prompt": "a", "completions": ["b"]}
        assert "no model" in refused(served, path, status=404, **other)


def test_a_reward_on_another_machine(scorer, tmp_path):
    """`model:URL` scores as `model:FOLDER` does, centred by its card, and mixes with it; an
    address without a scorer is refused before anything is trained.
    """
    scorer.card = Card(mean=0.25, std=2.0, n=9)
    scorer.save(tmp_path / "scorer")
    here = f"model:{tmp_path / 'scorer'}"
    prompts, answers = ["1+2=", "5+5="] * 150, ["3", "no"] * 150
    wanted = load_reward(here).function(prompts, answers)
    with running(scorer=load_scorer(str(tmp_path / "scorer"))) as served:
        there = f"model:{served.url}"
        assert load_reward(there).function(prompts, answers) == wanted
        both = load_reward(f"{there}+{here.removeprefix('model:')}:min")
        assert both.function(prompts, answers) == wanted
        gone = load_reward(there)
    with pytest.raises(LaurelError, match="connection failed"):
        gone.function(prompts, answers)
    with running(tiny()) as served, pytest.raises(LaurelError, match="no scorer"):
        load_reward(f"model:{served.url}")
