"""Does a policy that learns from preferences alone improve for the hidden judge?

And what happens if it may go further?

    python -m laurel_worlds.experiments.pipeline [PLAN.yaml] [--first-seed N] [--seeds K]
        [--betas .3 .02] [--set SECTION.OPTION=VALUE]

Runs `laurel pipeline` once a seed and beta (examples/addition-rlhf.yaml unless another plan is
named); what two betas share is made once. It prints a table and the verdicts; docs/pipeline.md
records a run.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean

from laurel.core.run import Run
from laurel.pipeline.compare import over_training
from laurel.pipeline.plan import Plan, read_plan
from laurel.pipeline.run import Pipeline
from laurel_worlds.experiments.comparison import (
    comparison_words,
    correction_note,
    interval_text,
    make_parser,
    markdown_table,
    run_seeds,
    seeds_of,
)

PLAN = Path(__file__).resolve().parents[2] / "examples" / "addition-rlhf.yaml"
COLUMNS = {
    "start": "hidden judge, start",
    "end": "after the policy's training",
    "gain": "gain (paired)",
    "learned": "gain, learned reward",
    "kl": "KL, nats per answer",
    "fall": "fall from its peak in training",
}
NAMES = {"gain": "hidden judge", "learned": "learned reward"}
Measured = dict[str, float]


def run_pipeline(plan: Plan) -> Measured:
    """The figures of one pipeline, and the peak and the end of the hidden judge over training.

    Means of blocks of steps.
    """
    made = Pipeline(plan, quiet=True)
    result = made.run()
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    gold = next(
        name.removesuffix(", start")
        for name in figures
        if name.endswith(", start") and not name.startswith("model")
    )
    proxy = next(
        name.removesuffix(", gain")
        for name in figures
        if name.endswith(", gain") and name != f"{gold}, gain"
    )
    policy = next(
        Path(plan.output_dir) / name for name in result["stages"] if name.startswith("policy-")
    )
    curve = [point[1] for point in over_training(Run(policy).metrics(), gold)]
    return {
        "start": figures[f"{gold}, start"],
        "end": figures[f"{gold}, policy"],
        "gain": figures[f"{gold}, gain"],
        "learned": figures[f"{proxy}, gain"],
        "kl": figures["KL to the start, nats per answer"],
        "fall": max(curve) - mean(curve[-2:]),
    }


def of_seed(
    seed: int, folder: Path, path: str, betas: list[float], changes: list[str]
) -> dict[float, Measured]:
    """beta -> what was measured.

    Stages that do not depend on beta are found in the folder and kept.
    """
    where, found = {"seed": seed, "output_dir": str(folder)}, {}
    for beta in betas:
        found[beta] = run_pipeline(read_plan(path, where, [*changes, f"policy.beta={beta}"]))
        told_so_far = ", ".join(f"{name} {value:.3f}" for name, value in found[beta].items())
        print(f"seed {seed}, beta {beta:g}: {told_so_far}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the seeds, print the table and the verdicts."""
    parser = make_parser(__doc__)
    parser.add_argument("plan", nargs="?", default=str(PLAN), help="a plan of `laurel pipeline`")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.3, 0.02], metavar="BETA")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE")
    args = parser.parse_args()
    asked = seeds_of(args)
    seeds = run_seeds(asked, partial(of_seed, path=args.plan, betas=args.betas, changes=args.set))
    rows = [
        [f"{beta:g}", *(interval_text([s[beta][name] for s in seeds], 3) for name in COLUMNS)]
        for beta in args.betas
    ]
    print(
        f"{Path(args.plan).name}; {asked}.\n\n"
        + markdown_table(["beta", *COLUMNS.values()], rows)
        + "\n"
    )
    for beta in args.betas:
        print(
            f"beta {beta:g}, by seed: "
            + ", ".join(f"{s[beta]['start']:.3f} to {s[beta]['end']:.3f}" for s in seeds)
        )
    gaps = {
        f"beta {beta:g}: the {what}": [s[beta][name] for s in seeds]
        for beta in args.betas
        for name, what in NAMES.items()
    }
    print("\n" + correction_note(len(gaps)))
    words = {1: "rose", -1: "fell", 0: "did not clearly move"}
    for what, verdict in comparison_words(gaps, words, 3).items():
        print(f"{what} {verdict}.")


if __name__ == "__main__":
    main()
