"""Over-optimisation: gold against proxy reward as the policy moves away from its start.

For best-of-n and for RL, with ensembles as a remedy.

    python -m laurel_worlds.experiments.overoptimisation [--first-seed N] [--seeds K]

Prints tables and the verdicts, and draws docs/figures/overoptimisation.svg. Every completion of a
small language has features; expectations and KL are exact sums over all of them.
docs/experiments.md records a run.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from laurel.measure.best_of_n import best_of_n_bound
from laurel.reward.learned import COMBINE
from laurel.verify.language import Language, best_of_n, kl, optimum
from laurel_worlds.experiments.comparison import (
    Curve,
    correction_note,
    draw_figure,
    interval_text,
    make_parser,
    markdown_table,
    seeds_of,
    sign_if_clear,
)
from laurel_worlds.experiments.ranking import fit_pairs

LANGUAGE, PROMPTS = (
    Language(6, 4),
    12,
)  # 781 completions of up to four tokens, for each of twelve prompts
FEATURES, MEMBERS, WRONG, ODD = 40, 5, 0.25, 0.2
PAIRS = (300, 1000, 3000, 10000)
NS = tuple(2**k for k in range(9))
BETAS = tuple(float(beta) for beta in torch.logspace(1.5, -1.5, 25, dtype=torch.float64))
GRID = tuple(k / 4 for k in range(17))  # KL in nats at which seeds are averaged
EARLY = 1.0
SINGLE, FEW = "single", 1000  # the ensembles are compared at FEW pairs
PENALTY = 0.5
Points = list[tuple[float, float, float]]  # KL, proxy, gold
Found = dict[str, dict[str, Any]]
WAYS = ("best of n", "RL, KL", "RL")
MADE = (
    len(WAYS) * (2 * len(PAIRS) + 2 * len(COMBINE)) + len(PAIRS) - 1
)  # comparisons: rise and fall; ensembles; alpha


def standardised_scores(score_XN: Tensor) -> Tensor:
    """With mean 0 and deviation 1 over all answers: [X, N]."""
    return (score_XN - score_XN.mean()) / score_XN.std(correction=0)


class World:
    """Features of every completion [X, N, F], a uniform reference, and a gold reward.

    The gold reward has mean 0 and deviation 1 under the reference.

    gold = w . phi - ODD (|phi|^2 - F): a direction of quality, and odd answers are worse than they
    look. The proxy is linear.
    """

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.feature_XNF = torch.randn(
            PROMPTS, LANGUAGE.N, FEATURES, dtype=torch.float64, generator=self.draw
        )
        true_F = torch.randn(FEATURES, dtype=torch.float64, generator=self.draw)
        odd_XN = self.feature_XNF.square().sum(2) - FEATURES
        self.gold_XN = standardised_scores(
            self.feature_XNF @ (true_F / true_F.norm()) - ODD * odd_XN
        )
        self.p_XN = torch.full_like(self.gold_XN, 1 / LANGUAGE.N)

    def pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random pairs of a prompt [n, F], [n, F] and which won [n].

        By the gold reward, with WRONG of the labels turned round.
        """
        x_N = torch.randint(PROMPTS, (count,), generator=self.draw)
        first_N, second_N = torch.randint(LANGUAGE.N, (2, count), generator=self.draw)
        wrong_N = torch.rand(count, generator=self.draw) < WRONG
        won_N = (self.gold_XN[x_N, first_N] > self.gold_XN[x_N, second_N]) ^ wrong_N
        return self.feature_XNF[x_N, first_N], self.feature_XNF[x_N, second_N], won_N

    def members(self, count: int, more: int) -> Tensor:
        """Scores [1 + more, X, N] with deviation 1 of the reward models of `count` pairs.

        The first is trained on the pairs, the others on resamples of them (bootstrap).
        """
        pairs = self.pairs(count)
        picks = [torch.arange(count), *torch.randint(count, (more, count), generator=self.draw)]
        return torch.stack(
            [
                standardised_scores(
                    self.feature_XNF @ fit_pairs(*(column[pick] for column in pairs))
                )
                for pick in picks
            ]
        )

    def path(self, logps: list[Tensor], score_XN: Tensor) -> Points:
        """KL to the reference, mean proxy and mean gold of policies [X, N], in order."""
        ref_XN = self.p_XN.log()
        means = [
            (
                kl(logp_XN, ref_XN).mean(),
                *((logp_XN.exp() * r).sum(1).mean() for r in (score_XN, self.gold_XN)),
            )
            for logp_XN in logps
        ]
        return [(float(k), float(proxy), float(gold)) for k, proxy, gold in means]

    def best(self, score_XN: Tensor) -> Points:
        """Best of 1, 2, 4, ... 256, exactly."""
        split = list(
            zip(self.p_XN[:, None], score_XN[:, None], strict=True)
        )  # prompt by prompt: N x N comparisons fit the cache
        return self.path(
            [
                torch.cat([best_of_n(p_1N, score_1N, n) for p_1N, score_1N in split]).log()
                for n in NS
            ],
            score_XN,
        )

    def tilted(self, score_XN: Tensor) -> Points:
        """The policies pi* of `optimum`, to which RL with a KL penalty converges."""
        ref_XN = self.p_XN.log()
        return self.path([ref_XN, *(optimum(ref_XN, score_XN, beta) for beta in BETAS)], score_XN)

    def climbed(self, score_XN: Tensor, *, steps: int = 50, rate: float = 0.08) -> Points:
        """RL without a penalty: exact gradient ascent on E[proxy] over every logit, by Adam."""
        logits_XSV = LANGUAGE.logits_of(self.p_XN).requires_grad_()
        adam, seen = torch.optim.Adam([logits_XSV], lr=rate), list[Tensor]()
        for _ in range(steps):
            logp_XN = LANGUAGE.logp(logits_XSV)
            seen.append(logp_XN.detach())
            adam.zero_grad()
            (-(logp_XN.exp() * score_XN).sum()).backward()
            adam.step()
        return self.path(seen, score_XN)


def column_on_grid(path: Points, column: int) -> list[float]:
    """One column (1 proxy, 2 gold) at the KLs of GRID, linear in between.

    The path must reach as far.
    """
    found = []
    assert path[-1][0] >= GRID[-1], f"the path ends at {path[-1][0]} nats"
    for where in GRID:
        left = [point for point in path if point[0] <= where + 1e-9][-1]
        right = next(point for point in path if point[0] > where + 1e-9)
        found.append(
            left[column] + (where - left[0]) / (right[0] - left[0]) * (right[column] - left[column])
        )
    return found


def fit_overoptimisation_law(path: Points) -> tuple[float, float]:
    """alpha of gold = d (alpha - beta d), d = sqrt KL, by least squares up to GRID's end; and R^2.
    Gao et al. 2022, arXiv:2210.10760.
    """
    used = [(k**0.5, gold) for k, _, gold in path[1:] if k <= GRID[-1]]
    d_P, gold_P = torch.tensor(used, dtype=torch.float64).T
    x_PC = torch.stack([d_P, -d_P.square()], 1)
    fit_C = torch.linalg.lstsq(x_PC, gold_P[:, None]).solution[:, 0]
    left = (gold_P - x_PC @ fit_C).square().sum() / (gold_P - gold_P.mean()).square().sum()
    return float(fit_C[0]), float(1 - left)


def of_seed(seed: int) -> Found:
    """All results in one world.

    Single proxies of every size by every way of optimising, and the ensembles at FEW pairs.
    """
    world, found = World(seed), {}
    for count in PAIRS:
        score_KXN = world.members(count, MEMBERS if count == FEW else 0)
        scores = {SINGLE: score_KXN[0]}
        if count == FEW:
            scores |= {name: combine(score_KXN[1:], PENALTY) for name, combine in COMBINE.items()}
        for name, score_XN in scores.items():
            for way, path in zip(
                WAYS,
                (world.best(score_XN), world.tilted(score_XN), world.climbed(score_XN)),
                strict=True,
            ):
                gold, proxy = column_on_grid(path, 2), column_on_grid(path, 1)
                alpha, fits = fit_overoptimisation_law(path)
                found[f"{way}, {count}, {name}"] = {
                    "peak": max(gold),
                    "kl": GRID[gold.index(max(gold))],
                    "early": gold[GRID.index(EARLY)],
                    "end": gold[-1],
                    "proxy early": proxy[GRID.index(EARLY)],
                    "proxy end": proxy[-1],
                    "alpha": alpha,
                    "fits": fits,
                    "gold": gold,
                    "proxy": proxy,
                    "slack": best_of_n_bound(NS[-1]) - path[-1][0],
                }
    return found


def paired_differences(seeds: list[Found], a: tuple[str, str], b: tuple[str, str]) -> list[float]:
    """Paired differences over the seeds: measure a less measure b, each a label and a name."""
    return [seed[a[0]][a[1]] - seed[b[0]][b[1]] for seed in seeds]


def table_rows(seeds: list[Found], labels: list[str]) -> list[list[str]]:
    """The rows of a table: for each label its peak, where, the end, and the law's fit."""
    names = ("peak", "kl", "end", "alpha", "fits")
    return [
        [label, *(interval_text([seed[label][name] for seed in seeds]) for name in names)]
        for label in labels
    ]


def verdicts(seeds: list[Found]) -> list[str]:
    """What paired differences over the worlds support."""
    word, moved = (
        {1: "more", -1: "less", 0: "not clearly different"},
        {1: "rose", -1: "fell", 0: "did not clearly move"},
    )
    slack = [seed[f"best of n, {FEW}, {SINGLE}"]["slack"] for seed in seeds]
    lines = [
        f"The exact KL of best of {NS[-1]} lies below log n - (n-1)/n by"
        f" {interval_text(slack, 3)} nats"
    ]
    for way in WAYS:
        for sort, early, end in (("gold", "early", "end"), ("proxy", "proxy early", "proxy end")):
            gaps = {
                n: paired_differences(
                    seeds, (f"{way}, {n}, {SINGLE}", end), (f"{way}, {n}, {SINGLE}", early)
                )
                for n in PAIRS
            }
            pieces = ", ".join(
                f"{moved[sign_if_clear(gap, MADE)]} ({interval_text(gap, of=MADE)}) with {n} pairs"
                for n, gap in gaps.items()
            )
            lines.append(f"{way}: from {EARLY:g} to {GRID[-1]:g} nats the {sort} reward {pieces}")
        for name in COMBINE:
            gaps = {
                c: paired_differences(
                    seeds, (f"{way}, {FEW}, {name}", c), (f"{way}, {FEW}, {SINGLE}", c)
                )
                for c in ("peak", "end")
            }
            pieces = " and ".join(
                f"{word[sign_if_clear(gap, MADE)]} at the {c} ({interval_text(gap, of=MADE)})"
                for c, gap in gaps.items()
            )
            lines.append(f"{way}, {FEW} pairs: {name} against a single proxy: gold {pieces}")
    for few, many in pairwise(PAIRS):
        grew = paired_differences(
            seeds,
            (f"best of n, {many}, {SINGLE}", "alpha"),
            (f"best of n, {few}, {SINGLE}", "alpha"),
        )
        lines.append(
            f"alpha, {many} against {few} pairs: {word[sign_if_clear(grew, MADE)]}"
            f" ({interval_text(grew, of=MADE)})"
        )
    return [line + "." for line in lines]


def main() -> None:
    """Run the worlds, print two tables and the verdicts, draw the figure."""
    asked = seeds_of(make_parser(__doc__, seeds=24).parse_args())
    torch.set_num_threads(1)
    seeds = [of_seed(seed) for seed in asked]
    header = [
        "optimised by, pairs, proxy",
        "gold, peak",
        "KL there",
        f"gold at {GRID[-1]:g} nats",
        "alpha",
        "R^2",
    ]
    print(
        markdown_table(
            header, table_rows(seeds, [f"{way}, {n}, {SINGLE}" for way in WAYS for n in PAIRS])
        )
    )
    print(
        "\n"
        + markdown_table(
            header,
            table_rows(
                seeds, [f"{way}, {FEW}, {name}" for way in WAYS for name in (SINGLE, *COMBINE)]
            ),
        )
        + "\n"
    )
    print(correction_note(MADE))
    print(*verdicts(seeds), sep="\n")
    curves: dict[str, Curve] = {}
    shown = [
        *(f"{way}, {FEW}, {SINGLE}" for way in WAYS),
        f"best of n, {FEW}, min",
        f"best of n, {FEW}, penalised",
    ]
    for name, label in [("proxy", shown[0]), *(("gold", label) for label in shown)]:
        curves[f"{name}: {label}"] = (
            GRID,
            [sum(seed[label][name][k] for seed in seeds) / len(seeds) for k in range(len(GRID))],
        )
    print(
        draw_figure(
            "overoptimisation",
            curves,
            x="KL to the reference, nats",
            y="deviations of the reward",
            title="Gold against proxy",
        )
    )


if __name__ == "__main__":
    main()
