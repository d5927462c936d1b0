"""A few labels of people and many verdicts of a judge: does the interval hold what it says?

    python -m laurel_worlds.experiments.prediction_powered [--first-seed N] [--seeds K]

Prints a table over designs: of 1,000 simulated studies (125 a seed) how many of the 95 % intervals
hold the truth, prediction-powered and by people alone, and how long the one is against the other.
Judges are biased: `informative` says 1 of a third of what is 0, `nearly right` of a tenth and errs
in nothing else; `useless` says 1 of six in ten whatever is true, `contrary` is wrong more often
than right. docs/judges.md records a run.
"""

from statistics import mean

import numpy as np

from laurel.measure.judging import ppi
from laurel_worlds.experiments.comparison import (
    interval_text,
    make_parser,
    markdown_table,
    print_verdicts,
    seeds_of,
)

STUDIES = 125
JUDGES = {
    "informative": (0.9, 1 / 3),
    "nearly right": (1.0, 0.1),
    "useless": (0.6, 0.6),
    "contrary": (0.4, 0.6),
}
"""P(the judge says 1) where the truth is 1, and where it is 0."""
DESIGNS = tuple(
    (labels, rest, truth)
    for labels, rest in ((50, 1000), (100, 1000), (200, 2000))
    for truth in (0.5, 0.8, 0.1)
)
HEAD = ("labels", "rest", "truth", "judge", "PPI holds it", "people hold it", "length, PPI/people")


def of_seed(seed: int, labels: int, rest: int, truth: float, judge: str) -> tuple[float, ...]:
    """Coverage of both intervals, and their mean lengths, over the studies of a seed."""
    rng = np.random.default_rng([seed, labels, rest, int(100 * truth), list(JUDGES).index(judge)])
    yes, no = JUDGES[judge]
    both: list[tuple[float, ...]] = []
    for _ in range(STUDIES):
        y = (rng.random(labels + rest) < truth) * 1.0
        f = (rng.random(len(y)) < np.where(y == 1, yes, no)) * 1.0
        found = ppi(y[:labels].tolist(), f[:labels].tolist(), f[labels:].tolist())
        one, two = found.estimate, found.human
        both.append(
            (
                float(one.low <= truth <= one.high),
                float(two.low <= truth <= two.high),
                one.high - one.low,
                two.high - two.low,
            )
        )
    return tuple(float(value) for value in np.mean(both, axis=0))


def main() -> None:
    """Run all designs; print the table, and where the interval is shorter."""
    asked = seeds_of(make_parser(__doc__).parse_args())
    rows: list[list[str]] = []
    shorter: dict[str, list[float]] = {}
    for design in DESIGNS:
        for judge in JUDGES:
            found = [of_seed(seed, *design, judge) for seed in asked]
            holds, alone = (mean(one[k] for one in found) for k in (0, 1))
            ratios = [one[2] / one[3] for one in found]
            rows.append([*map(str, design), judge, f"{holds:.3f}", f"{alone:.3f}"])
            rows[-1].append(interval_text(ratios, 3))
            shorter[f"{design[0]} labels, truth {design[2]}, {judge}"] = [1 - r for r in ratios]
    print(markdown_table(HEAD, rows) + "\n")
    print("How much shorter than people's alone (share of its length):")
    print_verdicts(shorter, unclear="as long")


if __name__ == "__main__":
    main()
