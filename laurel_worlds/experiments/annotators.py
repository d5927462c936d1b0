"""The annotators' distribution shifts the model's behaviour: two groups who disagree.

The lectures claim it. Measured by RL on mixtures of the groups' preferences.

    python -m laurel_worlds.experiments.annotators [--first-seed N] [--seeds K]

Prints tables and the verdicts that they support, and draws docs/figures/annotators.svg. Reward
models are trained on sampled labels; the policies are the exact optima of RL with a KL penalty.
docs/experiments.md records a run.
"""

from itertools import pairwise

import torch
from torch import Tensor

from laurel.verify.language import kl, optimum
from laurel_worlds.experiments.comparison import (
    correction_note,
    draw_figure,
    interval,
    interval_text,
    make_parser,
    markdown_table,
    seeds_of,
    sign_if_clear,
)
from laurel_worlds.experiments.overoptimisation import (
    BETAS,
    GRID,
    LANGUAGE,
    column_on_grid,
    standardised_scores,
)
from laurel_worlds.experiments.ranking import fit_pairs

PROMPTS, FEATURES, PAIRS = 6, 20, 1000
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
AGREEMENTS = (0.5, -0.5)  # cosine between what the two groups like
FAR = GRID.index(2.0)  # every policy is judged at 2 nats from the reference
Found = dict[float, dict[str, float]]


def of_seed(seed: int, agreement: float) -> Found:
    """One world: share of B's labels -> both groups' mean gold reward of the policy.

    Answers and random numbers are the same at each share.

    Every answer has features; A's gold reward is linear in them along a, B's along b, with cosine
    `agreement`, both of mean 0 and deviation 1. Whoever judges a pair follows Bradley and Terry
    under the own gold reward.
    """
    draw = torch.Generator().manual_seed(seed)
    feature_XNF = torch.randn(PROMPTS, LANGUAGE.N, FEATURES, dtype=torch.float64, generator=draw)
    gold = draw_group_rewards(feature_XNF, agreement, draw)
    x_N = torch.randint(PROMPTS, (PAIRS,), generator=draw)
    one_N, two_N = torch.randint(LANGUAGE.N, (2, PAIRS), generator=draw)
    who_N, luck_N = torch.rand(2, PAIRS, dtype=torch.float64, generator=draw)
    found = {}
    for share in SHARES:
        gap = {name: gold_XN[x_N, one_N] - gold_XN[x_N, two_N] for name, gold_XN in gold.items()}
        # one number decides who judges a pair and another what they say, at every share alike
        won_N = luck_N < torch.where(who_N < share, gap["B"], gap["A"]).sigmoid()
        weight_F = fit_pairs(feature_XNF[x_N, one_N], feature_XNF[x_N, two_N], won_N)
        found[share] = gold_of_optima(standardised_scores(feature_XNF @ weight_F), gold)
    return found


def draw_group_rewards(
    feature_XNF: Tensor, agreement: float, draw: torch.Generator
) -> dict[str, Tensor]:
    """Both groups' gold rewards [X, N], linear in the features along vectors of this cosine."""
    basis_FC, _ = torch.linalg.qr(torch.randn(FEATURES, 2, dtype=torch.float64, generator=draw))
    taste_FC = basis_FC @ torch.tensor(
        [[1.0, agreement], [0.0, (1 - agreement**2) ** 0.5]], dtype=torch.float64
    )
    return {
        name: standardised_scores(feature_XNF @ taste_F)
        for name, taste_F in zip("AB", taste_FC.T, strict=True)
    }


def gold_of_optima(score_XN: Tensor, gold: dict[str, Tensor]) -> dict[str, float]:
    """Both groups' mean gold reward of the optimal policy for a proxy, FAR from the reference."""
    ref_XN = torch.full_like(score_XN, 1 / LANGUAGE.N).log()
    path = []
    for policy_XN in (ref_XN, *(optimum(ref_XN, score_XN, beta) for beta in BETAS)):
        a, b = (float((policy_XN.exp() * gold_XN).sum(1).mean()) for gold_XN in gold.values())
        path.append((float(kl(policy_XN, ref_XN).mean()), a, b))
    return {name: column_on_grid(path, column)[FAR] for column, name in enumerate(gold, start=1)}


MADE = len(AGREEMENTS) * 2 * len(SHARES)
"""Comparisons: a group's four steps of the share, and its end against the reference."""


def verdicts(seeds: list[Found]) -> list[str]:
    """Which changes are clear: between neighbours, from none to all, against the reference.

    Both rewards are 0 at the reference.
    """
    word, lines = {1: "rose", -1: "fell", 0: "did not clearly change"}, []
    for group in "AB":
        steps = {
            f"{few:g} to {many:g}": [s[many][group] - s[few][group] for s in seeds]
            for few, many in pairwise(SHARES)
        }
        pieces = "; ".join(
            f"{where} {word[sign_if_clear(gap, MADE)]} ({interval_text(gap, of=MADE)})"
            for where, gap in steps.items()
        )
        lines.append(f"{group}'s gold reward as B's share grows: {pieces}.")
    alone = {"A": [s[1.0]["A"] for s in seeds], "B": [s[0.0]["B"] for s in seeds]}
    for group, gap in alone.items():
        lines.append(
            f"Without any label of its own, {group}'s gold reward {word[sign_if_clear(gap, MADE)]}"
            f" against the reference ({interval_text(gap, of=MADE)})."
        )
    return lines


def main() -> None:
    """Run the seeds at both agreements, print tables and verdicts, draw the figure."""
    asked = seeds_of(make_parser(__doc__, seeds=20).parse_args())
    torch.set_num_threads(1)
    curves = {}
    print(correction_note(MADE))
    for agreement in AGREEMENTS:
        seeds = [of_seed(seed, agreement) for seed in asked]
        rows = [
            [f"{share:g}", *(interval_text([s[share][group] for s in seeds]) for group in "AB")]
            for share in SHARES
        ]
        print(
            f"Tastes of cosine {agreement:g}:\n\n"
            + markdown_table(["share of B's labels", "A's gold reward", "B's gold reward"], rows)
            + "\n"
        )
        print("\n".join(verdicts(seeds)) + "\n")
        for group in "AB":
            means = [interval([s[share][group] for s in seeds])[0] for share in SHARES]
            curves[f"{group}'s gold, tastes of cosine {agreement:g}"] = (SHARES, means)
    axes = {
        "x": "share of the labels that group B gave",
        "y": "gold reward, deviations of the reference",
    }
    print(draw_figure("annotators", curves, **axes, title="Whose labels, whose model"))


if __name__ == "__main__":
    main()
