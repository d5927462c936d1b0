"""The lectures say that the annotators' distribution shifts the model's behaviour: two groups who
disagree, and RL on their mixture.

python bench/claim_annotators.py [--first-seed N] [--seeds K] prints tables and the verdicts that
they support, and draws docs/figures/annotators.svg.
Reward models are trained on sampled labels; the policies are the exact optima of RL with a KL
penalty. docs/experiments.md records a run.
"""

from itertools import pairwise

import torch
from claim import clearly, command, corrected, figure, interval, seeds_of, table, told
from claim_overoptimisation import BETAS, GRID, LANGUAGE, at, scaled
from claim_ranking import fit_pairs

from laurel.verify.language import kl, optimum

PROMPTS, FEATURES, PAIRS = 6, 20, 1000
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
AGREEMENTS = (0.5, -0.5)  # cosine between what the two groups like
FAR = GRID.index(2.0)  # every policy is judged at 2 nats from the reference
Found = dict[float, dict[str, float]]


def of_seed(seed: int, agreement: float) -> Found:
    """One world: share of B's labels -> both groups' mean gold reward of the policy. Answers and
    random numbers are the same at each share.

    Every answer has features; A's gold reward is linear in them along a, B's along b, with cosine
    `agreement`, both of mean 0 and deviation 1. Whoever judges a pair follows Bradley and Terry
    under the own gold reward.
    """
    draw = torch.Generator().manual_seed(seed)
    feature_XNF = torch.randn(PROMPTS, LANGUAGE.N, FEATURES, dtype=torch.float64, generator=draw)
    basis_FC, _ = torch.linalg.qr(torch.randn(FEATURES, 2, dtype=torch.float64, generator=draw))
    taste_FC = basis_FC @ torch.tensor(
        [[1.0, agreement], [0.0, (1 - agreement**2) ** 0.5]], dtype=torch.float64
    )
    gold = {
        name: scaled(feature_XNF @ taste_F) for name, taste_F in zip("AB", taste_FC.T, strict=True)
    }
    x_N = torch.randint(PROMPTS, (PAIRS,), generator=draw)
    one_N, two_N = torch.randint(LANGUAGE.N, (2, PAIRS), generator=draw)
    who_N, luck_N = torch.rand(2, PAIRS, dtype=torch.float64, generator=draw)
    ref_XN, found = torch.full_like(gold["A"], 1 / LANGUAGE.N).log(), {}
    for share in SHARES:
        gap = {name: gold_XN[x_N, one_N] - gold_XN[x_N, two_N] for name, gold_XN in gold.items()}
        won_N = luck_N < torch.where(who_N < share, gap["B"], gap["A"]).sigmoid()
        score_XN = scaled(
            feature_XNF @ fit_pairs(feature_XNF[x_N, one_N], feature_XNF[x_N, two_N], won_N)
        )
        policies = [ref_XN, *(optimum(ref_XN, score_XN, beta) for beta in BETAS)]
        means = [
            [
                float(value.mean())
                for value in (kl(p, ref_XN), *((p.exp() * r).sum(1) for r in gold.values()))
            ]
            for p in policies
        ]
        path = [(nats, a, b) for nats, a, b in means]
        found[share] = {name: at(path, column)[FAR] for column, name in enumerate(gold, start=1)}
    return found


MADE = (
    len(AGREEMENTS) * 2 * len(SHARES)
)  # comparisons: a group's four steps of the share, and its end against the reference


def verdicts(seeds: list[Found]) -> list[str]:
    """Between neighbouring shares, from none to all, and against the reference (where both rewards
    are 0): which changes are clear.
    """
    word, lines = {1: "rose", -1: "fell", 0: "did not clearly change"}, []
    for group in "AB":
        steps = {
            f"{few:g} to {many:g}": [s[many][group] - s[few][group] for s in seeds]
            for few, many in pairwise(SHARES)
        }
        pieces = "; ".join(
            f"{where} {word[clearly(gap, MADE)]} ({told(gap, of=MADE)})"
            for where, gap in steps.items()
        )
        lines.append(f"{group}'s gold reward as B's share grows: {pieces}.")
    alone = {"A": [s[1.0]["A"] for s in seeds], "B": [s[0.0]["B"] for s in seeds]}
    for group, gap in alone.items():
        lines.append(
            f"Without any label of its own, {group}'s gold reward {word[clearly(gap, MADE)]}"
            f" against the reference ({told(gap, of=MADE)})."
        )
    return lines


def main() -> None:
    """Run the seeds at both agreements, print tables and verdicts, draw the figure."""
    asked = seeds_of(command(__doc__, seeds=20).parse_args())
    torch.set_num_threads(1)
    curves = {}
    print(corrected(MADE))
    for agreement in AGREEMENTS:
        seeds = [of_seed(seed, agreement) for seed in asked]
        rows = [
            [f"{share:g}", *(told([s[share][group] for s in seeds]) for group in "AB")]
            for share in SHARES
        ]
        print(
            f"Tastes of cosine {agreement:g}:\n\n"
            + table(["share of B's labels", "A's gold reward", "B's gold reward"], rows)
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
    print(figure("annotators", curves, **axes, title="Whose labels, whose model"))


if __name__ == "__main__":
    main()
