"""Trained scorers as rewards: same encoding as in training, centred, combined, and reachable by
name.
"""

import threading

import pytest
import torch
from arithmetic import near

from laurel.core.errors import UsageError
from laurel.core.sample import Group, Key, Message, Sample
from laurel.model.scorer import Card, load_scorer
from laurel.model.scratch import char_tokenizer, save_scratch, small_model
from laurel.reward.learned import learned, mean, parse, penalised, worst
from laurel.reward.load import load_reward
from laurel.reward.mixture import load_rewards

PROMPTS, SAID = ["1+1=", "2+2=", "say x"], ["2", "5 or so", "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, two scorers with cards, one without training's mean, and one of three
    classes.
    """
    root = tmp_path_factory.mktemp("scorers")
    start = save_scratch(root / "start", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    for name, seed, card in (
        ("a", 0, Card(0.5, 2.0, 9)),
        ("b", 1, Card(-0.25, 0.5, 9)),
        ("bare", 2, Card()),
    ):
        scorer = load_scorer(str(start), seed=seed)
        scorer.card = card
        scorer.save(root / name)
    load_scorer(str(start), num_labels=3).save(root / "steps")
    return {path.name: str(path) for path in root.iterdir()}


def raw(folder):
    """The scores as the scorer itself gives them."""
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, SAID, strict=True)]
    return load_scorer(folder).score(rows).double()


def test_combinations_by_hand():
    """(1, 3): mean 2, worst 1, penalised by .5 times the variance 1: 1.5; agreement costs
    nothing.
    """
    score_KN = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    assert mean(score_KN).tolist() == [2, 4]
    assert worst(score_KN).tolist() == [1, 4]
    assert penalised(score_KN).tolist() == [1.5, 4]
    assert penalised(score_KN, 0.0).tolist() == mean(score_KN).tolist()
    assert penalised(score_KN[:1], 9.0).tolist() == [1, 4]


def test_one_scorer_is_its_score_less_the_stored_mean(folders):
    found = learned(folders["a"])(
        prompts=PROMPTS, completions=SAID, completion_ids=[[1]] * 3, other=[0] * 3
    )
    assert found == near(raw(folders["a"]) - 0.5)
    assert learned(folders["bare"])(prompts=PROMPTS, completions=SAID) == near(raw(folders["bare"]))
    assert learned(folders["a"])(prompts=[], completions=[]) == []


@pytest.mark.parametrize(
    ("how", "combine"),
    [("", mean), (":mean", mean), (":min", worst), (":penalised=2", lambda x: penalised(x, 2.0))],
)
def test_ensembles_by_name(folders, how, combine):
    members = torch.stack([raw(folders["a"]) - 0.5, raw(folders["b"]) + 0.25])
    found = parse(f"model:{folders['a']}+{folders['b']}{how}")(prompts=PROMPTS, completions=SAID)
    assert found == near(combine(members))


def test_standardise_divides_each_member_by_its_own_deviation(folders):
    members = torch.stack([(raw(folders["a"]) - 0.5) / 2, (raw(folders["b"]) + 0.25) / 0.5])
    found = learned(folders["a"], folders["b"], combine="min", standardise=True)(
        prompts=PROMPTS, completions=SAID
    )
    assert found == near(members.amin(0))


def test_messages_go_through_the_scorers_template(folders):
    prompt, answer = [Message(role="user", content="hi")], [Message(role="assistant", content="ho")]
    scorer = load_scorer(folders["bare"])
    expected = scorer.score([{"prompt": prompt, "completion": answer}]).tolist()
    assert learned(folders["bare"])(prompts=[prompt], completions=[answer]) == near(expected)
    assert expected != scorer.score([{"prompt": "hi", "completion": "ho"}]).tolist()


def group(text):
    key = Key("r", "s", "0", 0, 0)
    sample = Sample(
        key,
        (1,),
        (5, 2),
        (0.0, 0.0),
        (True, True),
        1.0,
        "eos",
        text,
        (Message(role="assistant", content=text),),
    )
    return Group("0", {"prompt": "1+1=", "answer": "2"}, (sample,))


def test_in_a_mixture_with_weights(folders):
    """By name, beside a verifier, called from the mixture's threads; the other columns do not
    disturb it.
    """
    name = f"model:{folders['a']}"
    mixture = load_rewards([name, name], [1.0, 2.0], [{"prompt": "1+1=", "answer": "2"}])
    assert mixture.names == ("model", "model_2")
    scored = mixture.score([group("2")])[0]
    assert scored.rewards[0] == near(3 * float(raw(folders["a"])[0] - 0.5))
    assert load_reward(f"model:{folders['a']}+{folders['b']}:min").name == "model_min"


def test_loading_in_threads_leaves_torch_as_it_was(folders):
    """Several scorers loaded at once, as a mixture does: a model made afterwards has the weights it
    had before.
    """

    def fresh():
        return [
            p.detach().clone()
            for p in small_model(
                char_tokenizer("ab"), hidden_size=16, num_hidden_layers=1
            ).parameters()
        ]

    before = fresh()
    threads = [threading.Thread(target=load_scorer, args=(str(folders["a"]),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh(), strict=True))


def test_threads_take_turns(folders):
    reward = learned(folders["a"], folders["b"])
    expected = reward(prompts=PROMPTS, completions=SAID)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(reward(prompts=PROMPTS, completions=SAID)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 4


def test_loaded_once_and_no_gradient_is_kept(folders):
    reward = learned(folders["a"])
    reward(prompts=PROMPTS, completions=SAID)
    first = reward.scorers[0]
    reward(prompts=PROMPTS, completions=SAID)
    assert reward.scorers[0] is first and all(p.grad is None for p in first.model.parameters())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model:{start}", "not a trained scorer"),
        ("model:{steps}", "3 classes"),
        ("model:{a}x", "no such model folder"),
        ("model:{a}+{b}:mni", "min"),
        ("model:{a}+", "missing"),
        ("model:", "missing"),
        ("model:{a}:min=2", "takes no number"),
        ("model:{a}:penalised=x", "not a number"),
        ("model:{a}:penalised=-1", "0 or more"),
    ],
)
def test_mistakes_are_found_before_any_weight_is_loaded(folders, name, says, monkeypatch):
    monkeypatch.setattr("laurel.model.scorer.load_scorer", None)
    with pytest.raises(UsageError, match=says):
        load_reward(name.format(**folders))
