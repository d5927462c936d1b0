"""Draw docs/figures/grpo.svg, README's curve, from the run directory of

    laurel train grpo --config examples/addition.yaml --eval_size 500 --eval_steps 10

python bench/curve.py runs/addition prints its ends.
"""

import json
import sys
from pathlib import Path

from laurel_worlds.experiments.comparison import draw_figure


def main(folder: Path) -> None:
    """The share of held-out sums that are right, and the mean reward of the samples."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    held = [line for line in lines if "eval/accuracy" in line]
    drawn = [line for line in lines if "reward" in line]
    curves = {
        "held-out sums, greedy": (
            [line["step"] for line in held],
            [h["eval/accuracy"] for h in held],
        ),
        "samples in training": ([line["step"] for line in drawn], [d["reward"] for d in drawn]),
    }
    title = "GRPO from a verifier's yes or no"
    draw_figure("grpo", curves, x="step (64 prompts x 8 samples)", y="share right", title=title)
    print(f"held out: {held[0]['eval/accuracy']:.3f} at step {held[0]['step']},", end=" ")
    print(f"{held[-1]['eval/accuracy']:.3f} at step {held[-1]['step']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
