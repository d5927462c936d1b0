"""The lectures' experiments: what they claim about training from feedback, measured over seeds.

    python -m laurel_worlds.experiments.NAME [--first-seed N] [--seeds K]

Each prints tables and the verdicts that they support; some draw docs/figures/NAME.svg of a
checkout. `docs/experiments.md` records their runs. They train with `laurel` as a user would;
`labels`, `reliability` and `weights` take votes from `laurel_feedback`.
"""
