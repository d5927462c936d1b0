"""The lectures say that ranking is better than scoring, because scores are noisier.

Both from the same annotators, at equal effort.

    python -m laurel_worlds.experiments.ranking [--first-seed N] [--seeds K]

Prints two tables and the verdicts, and draws docs/figures/ranking.svg. An answer is a vector of
features and its true quality linear in them, so only the labels differ. docs/experiments.md records
a run.
"""

import torch
from torch import Tensor

from laurel.core.sample import Batch, Comparisons, Key
from laurel.objective.reward import bradley_terry
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

FEATURES, ANSWERS, LOOKS, HELD_OUT = (
    20,
    150,
    2,
    4000,
)  # every answer is judged twice: 300 scores, or 300 comparisons
# of what is perceived, at every look; the truth's deviation is 1 too, so 3 of 4 comparisons are
# right
NOISE = 1.0
ANNOTATORS, BIASES = 20, (0.0, 0.25, 0.5, 1.0, 2.0)
STANDARDISED, HALF = "scores, standardised by annotator", "comparisons, half as many"
NAMES = ("scores", STANDARDISED, "comparisons", HALF)
CROWDS, CROWD_BIAS = (5, 20, 75, 150, 300), 1.0
PAIRED = (("comparisons", "scores"), ("comparisons", STANDARDISED), (HALF, "scores"))
MADE = len(PAIRED) * (len(BIASES) + len(CROWDS))  # comparisons


def comparison(first_NF: Tensor, second_NF: Tensor, won_N: Tensor) -> tuple[Tensor, Batch]:
    """Pairs as rows of features [2N, F], and the batch that says which of two won.

    Rows 2i and 2i + 1 are a comparison.
    """
    rows = 2 * len(won_N)
    feature_NF = torch.stack([first_NF, second_NF], 1).reshape(rows, -1)
    grade_N1 = torch.stack([won_N, ~won_N], 1).reshape(rows, 1).to(feature_NF.dtype) * 2 - 1
    zero_N, there_N1 = torch.zeros(rows, dtype=torch.long), torch.ones(rows, 1, dtype=torch.bool)
    batch = Batch(
        ids_NL=zero_N[:, None],
        attention_NL=there_N1,
        start_N=zero_N,
        length_N=zero_N + 1,
        loss_mask_NT=there_N1,
        logp_old_NT=grade_N1 * 0,
        logp_ref_NT=grade_N1 * 0,
        weight_NT=grade_N1 * 0,
        temperature_N=torch.ones(rows),
        group_N=torch.arange(rows) // 2,
        keys=tuple(Key("claim", "claim", str(n // 2), n % 2, 0) for n in range(rows)),
        comparison=Comparisons.of(grade_N1[:, 0]),
    )
    return feature_NF, batch


def fit_pairs(first_NF: Tensor, second_NF: Tensor, won_N: Tensor, *, ridge: float = 1.0) -> Tensor:
    """A linear reward model's weights [F] under laurel's Bradley-Terry objective.

    The loss is a sum over pairs, and ridge/2 |w|^2.
    """
    feature_NF, batch = comparison(first_NF, second_NF, won_N)
    weight_F = torch.zeros(feature_NF.shape[1], dtype=feature_NF.dtype, requires_grad=True)
    newton = torch.optim.LBFGS([weight_F], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        newton.zero_grad()
        value = (
            bradley_terry((feature_NF @ weight_F)[:, None], batch).sum()
            + ridge / 2 * weight_F.square().sum()
        )
        value.backward()
        return value

    newton.step(loss)
    return weight_F.detach()


def fit_scores(feature_NF: Tensor, score_N: Tensor, *, ridge: float = 1.0) -> Tensor:
    """The weights [F] of a linear regression on scores.

    Features and scores are centred; the ridge is the same.
    """
    x_NF, y_N = feature_NF - feature_NF.mean(0), score_N - score_N.mean()
    return torch.linalg.solve(
        x_NF.T @ x_NF + ridge * torch.eye(x_NF.shape[1], dtype=x_NF.dtype), x_NF.T @ y_N
    )


def standardised(score_N: Tensor, who_N: Tensor) -> Tensor:
    """Each annotator's scores minus their mean, over their deviation: [N].

    The usual remedy for offsets and scales.

    (1, 3) by one annotator: (-1, 1). Whoever gave one score only says nothing: 0.
    """
    count_A = torch.bincount(who_N).clamp(min=1)
    mean_A = torch.bincount(who_N, score_N) / count_A
    spread_A = (torch.bincount(who_N, (score_N - mean_A[who_N]).square()) / count_A).sqrt()
    return (score_N - mean_A[who_N]) / spread_A[who_N].clamp(min=1e-9)


def of_seed(seed: int, bias: float, annotators: int) -> dict[str, float]:
    """One world: a true direction, answers, annotators of this bias.

    Correlation of each learned score with the truth, held out.

    An annotator a who looks at answer y perceives u = truth + noise. A score is exp(bias s_a) u +
    bias o_a with s_a, o_a ~ N(0, 1), a comparison says which of two perceived values is higher, so
    that neither offset nor scale can show. Annotators take turns.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    true_F = normal(FEATURES)
    true_F = true_F / true_F.norm()
    answer_NF, held_NF = normal(ANSWERS, FEATURES).repeat(LOOKS, 1), normal(HELD_OUT, FEATURES)
    count = len(answer_NF)
    rival_N = (
        torch.arange(count) + torch.arange(1, LOOKS + 1).repeat_interleave(ANSWERS)
    ) % count  # another answer each time
    who_N = torch.randperm(count, generator=draw) % annotators
    first_N, second_N = (
        answer_NF @ true_F + NOISE * normal(count),
        answer_NF[rival_N] @ true_F + NOISE * normal(count),
    )
    scale_A, offset_A = (bias * normal(annotators)).exp(), bias * normal(annotators)
    score_N, won_N = scale_A[who_N] * first_N + offset_A[who_N], first_N > second_N
    learned = {
        "scores": fit_scores(answer_NF, score_N),
        STANDARDISED: fit_scores(answer_NF, standardised(score_N, who_N)),
        "comparisons": fit_pairs(answer_NF, answer_NF[rival_N], won_N),
        HALF: fit_pairs(answer_NF[:ANSWERS], answer_NF[rival_N[:ANSWERS]], won_N[:ANSWERS]),
    }
    return correlations(learned, held_NF, true_F)


def correlations(learned: dict[str, Tensor], held_NF: Tensor, true_F: Tensor) -> dict[str, float]:
    """Correlation of each learned score with the truth on held-out answers; 0 if constant."""
    score_SN = torch.stack([held_NF @ weight_F for weight_F in (true_F, *learned.values())])
    # row 0 is the truth; a score that is the same everywhere has no correlation: nan
    right_S = torch.corrcoef(score_SN)[0, 1:].nan_to_num(0.0)
    return dict(zip(learned, right_S.tolist(), strict=True))


def verdict(better: str, worse: str, found: dict[str, list[dict[str, float]]]) -> str:
    """Where one method is better by paired differences, where worse, where neither is clear."""
    gaps = {where: [s[better] - s[worse] for s in seeds] for where, seeds in found.items()}
    word = {1: "better", -1: "worse", 0: "no clear difference"}
    return (
        f"{better} against {worse}: "
        + "; ".join(
            f"{where} {word[sign_if_clear(gap, MADE)]} ({interval_text(gap, 3, MADE)})"
            for where, gap in gaps.items()
        )
        + "."
    )


def main() -> None:
    """Run the seeds at every bias and crowd size; print tables and verdicts, draw the figure."""
    asked = seeds_of(make_parser(__doc__, seeds=40).parse_args())
    torch.set_num_threads(1)
    biases = {
        f"bias {bias:g}": [of_seed(seed, bias, ANNOTATORS) for seed in asked] for bias in BIASES
    }
    crowds = {
        f"{crowd} annotators": [of_seed(seed, CROWD_BIAS, crowd) for seed in asked]
        for crowd in CROWDS
    }
    print(correction_note(MADE))
    for found in (biases, crowds):
        print(
            markdown_table(
                ["", *NAMES],
                [
                    [where, *(interval_text([s[name] for s in seeds], 3) for name in NAMES)]
                    for where, seeds in found.items()
                ],
            )
        )
        for better, worse in PAIRED:
            print("\n" + verdict(better, worse, found))
        print()
    curves = {
        name: (list(BIASES), [interval([s[name] for s in seeds])[0] for seeds in biases.values()])
        for name in NAMES
    }
    axes = {
        "x": "deviation of annotators' offset and log scale",
        "y": "correlation with the truth, held out",
    }
    print(
        draw_figure(
            "ranking",
            curves,
            **axes,
            title=f"{ANSWERS * LOOKS} judgements by {ANNOTATORS} annotators",
        )
    )


if __name__ == "__main__":
    main()
