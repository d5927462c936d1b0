"""A process reward model as a reward: steps as in training, the chance that a step is not wrong,
combined; abstention, not 0.
"""

import math

import pytest
import torch
from arithmetic import near

from laurel.core.errors import UsageError
from laurel.model.rows import encode_steps
from laurel.model.scorer import Card, load_scorer
from laurel.model.scratch import save_scratch
from laurel.reward.load import load_reward
from laurel.reward.mixture import load_rewards
from laurel.reward.process import (
    COMBINE,
    last,
    mean,
    parse,
    process_reward,
    product,
    step_soundness,
    steps_of,
    worst,
)

PROMPTS, SAID = ["1+1=", "2+2=", "say x"], ["one\nmore\n\nis 2", "4", "x\ny"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, a scorer of one number, and two of three classes, one that reads 12 tokens
    at most.
    """
    root = tmp_path_factory.mktemp("scorers")
    start = save_scratch(root / "start", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    load_scorer(str(start), seed=0).save(root / "one")
    for name, limit in (("steps", None), ("short", 12)):
        scorer = load_scorer(str(start), num_labels=3, seed=1)
        with torch.no_grad():
            scorer.model.score.weight.mul_(40.0)  # so that it says something
        scorer.card = Card(max_length=limit)
        scorer.save(root / name)
    return {path.name: str(path) for path in root.iterdir()}


def test_combinations_by_hand():
    sound_S = torch.tensor([0.9, 0.5, 0.8], dtype=torch.float64)
    found = [float(combine(sound_S)) for combine in (product, worst, mean, last)]
    assert found == pytest.approx([0.36, 0.5, 2.2 / 3, 0.8])
    one = torch.tensor([0.3])
    assert {float(combine(one)) for combine in COMBINE.values()} == {float(one)}


def test_sound_is_what_is_left_of_wrong():
    """Logits (wrong, neutral, right): equal ones leave 2/3; a constant changes nothing; neutral
    counts as much as right.
    """
    score_SC = torch.tensor(
        [[0.0, 0, 0], [math.log(2), 0, 0], [5, 5, 5], [0, 1, 3], [0, 3, 1]], dtype=torch.float64
    )
    found = step_soundness(score_SC)
    assert found[:3].tolist() == pytest.approx([2 / 3, 1 / 2, 2 / 3]) and float(
        found[3]
    ) == pytest.approx(float(found[4]))


def test_steps_are_lines_and_blank_ones_are_none():
    assert steps_of(" a\n\n  \nb \n") == [" a", "b "]
    turns = [
        {"role": "assistant", "content": "a\nb"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "c"},
    ]
    assert steps_of(turns) == ["a", "b", "c"]
    assert steps_of("") == steps_of("\n \n") == []


@pytest.mark.parametrize("how", COMBINE)
def test_it_reads_the_ends_that_training_marks(folders, how):
    """The score of each prefix up to a step's last token, as plain rows of ids, combined by
    hand.
    """
    scorer = load_scorer(folders["steps"], device="cpu")
    expected = []
    for prompt, said in zip(PROMPTS, SAID, strict=True):
        row = encode_steps(
            scorer.tokenizer, {"prompt": prompt, "completions": steps_of(said)}, max_length=None
        )
        ends = [i for i, on in enumerate(row.mask) if on]
        assert scorer.tokenizer.decode(row.ids).endswith("\n" + steps_of(said)[-1]) and len(
            ends
        ) == len(steps_of(said))
        wrong = [
            float(scorer.score([row.ids[: end + 1]]).double().softmax(1)[0, 0]) for end in ends
        ]
        expected.append(float(COMBINE[how](1 - torch.tensor(wrong, dtype=torch.float64))))
    found = parse(f"prm:{folders['steps']}:{how}")(prompts=PROMPTS, completions=SAID, other=[0] * 3)
    assert found == near(expected)
    assert max(expected) - min(expected) > 1e-3


def test_no_step_is_nobodys_opinion(folders):
    reward = process_reward(folders["steps"], device="cpu")
    assert reward(prompts=["1+1=", "1+1="], completions=["", "\n"]) == [None, None]
    some = reward(prompts=["1+1=", "1+1="], completions=["2", " "])
    assert some[1] is None and 0 < some[0] < 1
    assert reward(prompts=[], completions=[]) == []


def test_steps_beyond_what_it_can_read_are_not_taken_for_right(folders):
    """The same answer and one more step that does not fit: nobody judged the whole, so nobody says
    anything.
    """
    reward = process_reward(folders["short"], device="cpu")
    fits, longer = reward(prompts=["1=", "1="], completions=["ab\ncd", "ab\ncd\nefghij"])
    assert fits is not None and longer is None


def test_by_name_wherever_a_reward_is_named(folders):
    mixture = load_rewards(
        [f"prm:{folders['steps']}", f"prm:{folders['steps']}:min"], [1.0, 0.5], [{"prompt": "1+1="}]
    )
    assert mixture.names == ("prm_product", "prm_min")
    assert load_reward(f"prm:{folders['steps']}:last").name == "prm_last"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prm:{start}", "not a trained scorer"),
        ("prm:{one}", "1 output judges no steps"),
        ("prm:{steps}x", "no such model folder"),
        ("prm:{steps}:mni", "`min`"),
        ("prm:", "missing"),
    ],
)
def test_what_is_no_judge_of_steps_is_refused(folders, name, says):
    with pytest.raises(UsageError, match=says):
        load_reward(name.format(**folders))
