"""Prompt choice: seconds of a fit, of a choice for 1,000 queries x 16 prompts once encoded, and of
one query, on the authors' logs.

python bench/bench_prompt.py FOLDER [DATASET]
"""

import sys
import time
from pathlib import Path

from laurel_prompts.fit import fit
from laurel_prompts.published import read_published


def seconds(work, repeats=5):
    """The least of some repetitions."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


log, _ = read_published(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "gsm8k")
start = time.perf_counter()
made = fit(log)
spent = time.perf_counter() - start
print(
    f"fit, {int((~log.test_S).sum()):,} queries x {len(made.predictor.names)} prompts: {spent:.1f}"
    f" s ({made.trials[0].name})"
)
prompts = dict(zip(log.names, log.prompts, strict=True))
queries = log.queries[-1000:]
encoded = made.predictor.features(queries)
print(f"encoding 1,000 queries: {seconds(lambda: made.predictor.features(queries)):.3f} s")
predictor = made.predictor
best = {type(trial.model).__name__: trial.model for trial in reversed(made.trials)}
for name in ("Trees", "Logistic"):
    if type(predictor.model).__name__ != name and name in best:
        train = log.rows(~log.test_S).columns(list(range(len(predictor.names))))
        predictor.model = best[name].fit(
            predictor.features(train.queries),
            predictor.prompt_directions(predictor.encode(predictor.prompts)),
            train.reward_SP,
        )
    for count in (1000, 1):
        spent = seconds(
            lambda count=count: predictor.scores(encoded[:count], prompts).argmax(1), repeats=20
        )
        print(
            f"{name}: choice for {count:,} x {len(prompts)}: {spent:.4f} s,"
            f" {spent / count / len(prompts) * 1e6:.2f} us a candidate"
        )
