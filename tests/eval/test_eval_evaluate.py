"""Evaluation against figures known by hand or by enumeration, on real tiny models."""

import math

import pytest
import torch
from arithmetic import near

from laurel.core.config import EvalConfig
from laurel.core.errors import UsageError
from laurel.core.result import Abstain, Failed, Score
from laurel.core.sample import Group, Key, Sample
from laurel.data.source import Row
from laurel.eval import evaluate as evaluation
from laurel.eval.evaluate import (
    evaluate,
    is_right,
    mean_reward,
    pass_at_ks,
    sample_figures,
    vote_key,
)
from laurel.model.policy import Policy, load_causal, load_tokenizer
from laurel.model.scratch import save_scratch
from laurel.reward.mixture import load_rewards

SAID = {
    "right": Score(1.0),
    "half": Score(0.5),
    "failed": Failed("broken"),
    "silent": Abstain("no opinion"),
}


def by_kind(answer, row):
    """What the row says, whatever the answer."""
    return SAID[row["kind"]]


def sevens(completions, **columns):
    """1 for an answer that begins with a 7."""
    return [float(text.startswith("7")) for text in completions]


def tiny(folder, alphabet, seed):
    save_scratch(
        folder,
        alphabet=alphabet,
        seed=seed,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return Policy(load_causal(str(folder), torch.float32).eval(), load_tokenizer(str(folder)))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("model"), "0123456789+=", 0)


def rows_of(count, **columns):
    return [
        Row({"prompt": f"{i}+{i * i}=", **columns}, f"rows:{i}", f"row-{i}") for i in range(count)
    ]


def group(prompt, gold, answers, rewards):
    """A scored group whose samples said `answers`, one id per character."""
    samples = tuple(
        Sample(
            Key("r", "s", prompt, i, 0),
            (1,),
            tuple(map(ord, text)),
            (-1.0,) * len(text),
            (True,) * len(text),
            1.0,
            "eos",
            text,
            ({"role": "assistant", "content": text},),
        )
        for i, text in enumerate(answers)
    )
    return Group(prompt, {"prompt": prompt, "answer": gold}, samples, {}, rewards)


def scored_by_hand():
    return [
        group("a", "7", ["7", "The answer is 7.", "3"], (1.0, 1.0, 0.0)),
        group("b", "5", ["5", "2", "2"], (1.0, 0.0, None)),
    ]


def test_answers_without_a_reward_are_wrong_and_counted_but_not_averaged(policy):
    """A65, T67: of one right, one half right, one failed and one abstained answer, accuracy is 1/4
    and the mean reward 3/4.
    """
    rows = [Row({"prompt": "1+1=", "kind": kind}, f"rows:{kind}", kind) for kind in SAID]
    mixture = load_rewards([by_kind], None, rows, max_failed_fraction=1.0)
    result = evaluate(policy, rows, mixture, EvalConfig(num_generations=2, max_completion_length=3))
    figures = {name: interval.value for name, interval in result.figures.items()}
    assert figures["accuracy"] == figures["pass@1"] == figures["pass@2"] == 0.25
    assert figures["reward"] == figures["sampled/reward"] == 0.75
    assert figures["majority@2"] <= 0.25
    assert (result.prompts, result.failed) == (4, 2 + 4)
    assert result.as_json()["figures"]["accuracy"]["n"] == 4


def test_figures_of_known_samples():
    """pass@1 = (2/3 + 1/3)/2, pass@2 = (1 + 2/3)/2, majority@2 = (2/3 + 1/3)/2 with ties shared,
    majority@3 = (1 + 0)/2.
    """
    figures = {
        name: interval.value
        for name, interval in sample_figures(scored_by_hand(), [1, 2, 3]).items()
    }
    assert figures == pytest.approx(
        {
            "pass@1": 1 / 2,
            "pass@2": 5 / 6,
            "pass@3": 1.0,
            "majority@2": 1 / 2,
            "majority@3": 1 / 2,
            "sampled/reward": 3 / 5,
            "sampled/distinct": 5 / 6,
        }
    )


def test_the_order_of_samples_and_prompts_changes_no_figure():
    groups = scored_by_hand()
    turned = [
        Group(g.prompt, g.row, g.samples[::-1], {}, g.rewards[::-1]) for g in reversed(groups)
    ]
    values = [
        {name: i.value for name, i in sample_figures(some, [1, 2, 3]).items()}
        for some in (groups, turned)
    ]
    assert values[0] == pytest.approx(values[1])


def test_distinct_counts_repetitions_within_a_prompt_only():
    """The same text under two prompts is no repetition; under one prompt it is. The interval rests
    on prompts.
    """
    groups = [group("a", "7", ["7", "7"], (1.0, 1.0)), group("b", "7", ["7", "8"], (1.0, 0.0))]
    distinct = sample_figures(groups, [1])["sampled/distinct"]
    assert (distinct.value, distinct.n) == (3 / 4, 2)


def test_a_single_prompt_has_an_interval_over_its_samples():
    one = sample_figures([group("a", "7", ["7", "8", "9", "7"], (1.0, 0.0, 0.0, 1.0))], [1])[
        "sampled/reward"
    ]
    assert one.n == 4 and one.low < one.value == 0.5 < one.high


def test_mean_reward_leaves_out_what_was_not_scored():
    assert (
        mean_reward(
            "reward", [group("a", "7", ["7", "8"], (0.25, None)), group("b", "7", ["7"], (0.75,))]
        )["reward"].value
        == 0.5
    )
    assert mean_reward("reward", [group("a", "7", ["7"], (None,))]) == {}


@pytest.mark.parametrize(
    ("answer", "gold", "vote"),
    [
        ("The total is 1,200.", "1200", "1200"),
        ("so 1/2", "0.5", "1/2"),
        ("0.50", "1/2", "1/2"),
        ("I do not know", "7", None),
        ("", "blue", None),
        ("  Dark  BLUE\n", "blue", "dark blue"),
    ],
)
def test_canonical(answer, gold, vote):
    """Numbers vote as numbers where the gold answer is one; else texts without case and spacing;
    None is a blank ballot.
    """
    assert vote_key(answer, {"answer": gold}) == vote


def test_is_right_means_a_full_reward():
    assert [is_right(value) for value in (1.0, 1.5, 1 - 1e-12, 0.99, None)] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("k", [[0], [5], [1, 5], [-1, 2]])
def test_k_that_cannot_be_estimated_is_refused(k):
    with pytest.raises(UsageError, match="k = "):
        pass_at_ks(EvalConfig(num_generations=4, k=k))


@pytest.mark.parametrize(
    "idle", [{"k": [1]}, {"reference": "x"}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 3}]
)
def test_options_about_samples_are_refused_where_there_are_none(idle):
    """A19: an option that would be ignored is an error."""
    with pytest.raises(UsageError, match=next(iter(idle))):
        pass_at_ks(EvalConfig(**idle))


def test_default_k():
    assert pass_at_ks(EvalConfig(num_generations=4)) == [1, 4]
    assert pass_at_ks(EvalConfig(num_generations=4, k=[4, 2, 2])) == [2, 4]
    assert pass_at_ks(EvalConfig()) == []


def test_greedy_answers_do_not_depend_on_the_seed_and_samples_do(policy):
    rows = rows_of(5)
    mixture = load_rewards([sevens], None, rows)
    runs = [
        evaluate(
            policy, rows, mixture, EvalConfig(num_generations=3, max_completion_length=5, seed=s)
        )
        for s in (1, 1, 2)
    ]
    greedy = [[g.samples[0].completion_ids for g in run.greedy] for run in runs]
    sampled = [[s.completion_ids for g in run.sampled for s in g.samples] for run in runs]
    assert greedy[0] == greedy[1] == greedy[2]
    assert sampled[0] == sampled[1] != sampled[2]
    assert runs[0].as_json() == runs[1].as_json()


def test_portions_change_nothing(policy, monkeypatch):
    """A65: seven rows at once, in threes or one by one: the same answers, rewards and figures, in
    the order of the rows.
    """
    rows = rows_of(7)
    mixture = load_rewards([sevens], None, rows)
    heard, results = [], []
    for at_once in (7, 3, 1):
        monkeypatch.setattr(evaluation, "AT_ONCE", at_once)
        config = EvalConfig(num_generations=2, max_completion_length=4)
        results.append(
            evaluate(policy, rows, mixture, config, reference=policy, watch=heard.append)
        )
    for other in results[1:]:
        for mine, theirs in zip(
            [*results[0].greedy, *results[0].sampled], [*other.greedy, *other.sampled], strict=True
        ):
            assert mine.prompt == theirs.prompt and mine.rewards == theirs.rewards
            assert [s.completion_ids for s in mine.samples] == [
                s.completion_ids for s in theirs.samples
            ]
        for name, interval in results[0].figures.items():
            assert other.figures[name].value == near(interval.value), name
    assert [group.prompt for group in results[0].greedy] == [row.id for row in rows]
    assert heard == [7, 7, 3, 3, 1, 3, 3, 1, *[1] * 14]


def test_kl_to_itself_is_zero(policy):
    rows = rows_of(4)
    config = EvalConfig(num_generations=8, max_completion_length=5)
    kl = evaluate(
        policy, rows, load_rewards([sevens], None, rows), config, reference=policy
    ).figures["sampled/kl"]
    assert kl.value == pytest.approx(0, abs=1e-4)


def exact_kl(policy, reference, prompt_ids, temperature):
    """KL(pi || ref) over every completion of at most two tokens, and the variance of log pi - log
    ref under pi, by enumeration.
    """

    def table(model, ids):
        with torch.no_grad():
            return (
                model.causal(torch.tensor([ids])).logits[0, -1].double() / temperature
            ).log_softmax(0)

    ends, mean, square = policy.eos_ids, 0.0, 0.0
    first, first_ref = table(policy, prompt_ids), table(reference, prompt_ids)
    for x in range(len(first)):
        gap = float(first[x] - first_ref[x])
        if x in ends:
            outcomes = [(float(first[x]), gap)]
        else:
            second, second_ref = table(policy, [*prompt_ids, x]), table(reference, [*prompt_ids, x])
            outcomes = [
                (float(first[x] + second[y]), gap + float(second[y] - second_ref[y]))
                for y in range(len(second))
            ]
        mean += sum(math.exp(logp) * value for logp, value in outcomes)
        square += sum(math.exp(logp) * value**2 for logp, value in outcomes)
    return mean, square - mean**2


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampled_kl_is_the_exact_kl_within_five_sigma(tmp_path, temperature):
    """Six tokens, completions of two: the mean of log pi(x) - log ref(x) over 4,000 samples against
    the sum over all completions.
    """
    policy, reference = tiny(tmp_path / "a", "01", 0), tiny(tmp_path / "b", "01", 1)
    rows = [Row({"prompt": "01"}, "rows:1", "row-1")]
    config = EvalConfig(num_generations=4000, max_completion_length=2, temperature=temperature)
    result = evaluate(policy, rows, load_rewards([sevens], None, rows), config, reference=reference)
    exact, variance = exact_kl(
        policy, reference, list(result.sampled[0].samples[0].prompt_ids), temperature
    )
    sigma = math.sqrt(variance / 4000)
    kl = result.figures["sampled/kl"]
    assert exact > 10 * sigma, "a test that could not fail"
    assert abs(kl.value - exact) < 5 * sigma
    assert (kl.high - kl.low) / 2 == pytest.approx(1.96 * sigma, rel=0.15)
