"""Which prompt for which query: a log, the reward learned from it, a choice for each query, and a
policy trained against that reward.

python examples/prompts.py
"""

import json
import sys
from pathlib import Path

import numpy as np

from laurel.core.config import TrainConfig
from laurel.train.loop import train
from laurel_prompts.fit import fit
from laurel_prompts.synthetic import synthetic_log

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
log, truth = synthetic_log(3000)  # yours: laurel_prompts.logs.read_log("log.jsonl")
found = fit(log)
found.predictor.save("prompts", {"log": log.name})

queries = [query for query, test in zip(log.queries, log.test_S, strict=True) if test]
choice = found.predictor.choose(queries)
worth = truth[log.test_S][
    np.arange(len(queries)), [log.names.index(one.name) for one in choice]
].mean()
print(
    f"best single prompt {truth.mean(0).max():.3f}, chosen per query {worth:.3f}, oracle"
    f" {truth.max(1).mean():.3f}"
)

# A policy that writes the prompt's name: it imitates what was right in the log, then its own best
# of 8
# under r(q, p) (RAFT; RLOO settles on the default prompt before it has learned to read). The
# language model is never asked.
rng = np.random.default_rng(0)
worked = [
    (s, rng.choice(np.flatnonzero(log.reward_SP[s] == 1)))
    for s in np.flatnonzero(~log.test_S)
    if (log.reward_SP[s] == 1).any()
]
rows = [json.dumps({"prompt": log.queries[s], "completion": log.names[p]}) for s, p in worked]
Path("prompts/worked.jsonl").write_text("\n".join(rows))
common = TrainConfig(
    dataset="prompts/worked.jsonl",
    eval_size=100,
    prompts_per_step=32,
    learning_rate=1e-3,
    logging_steps=20,
)
imitated = train(
    "sft",
    common.model_copy(
        update={"model": "scratch", "max_steps": 60, "output_dir": "prompts/imitated"}
    ),
)
followed = train(
    "raft",
    common.model_copy(
        update={
            "model": str(imitated.model),
            "max_steps": steps,
            "rewards": ["examples/rewards/prompts.py:chance"],
            "num_generations": 8,
            "max_completion_length": 3,
            "output_dir": "prompts/followed",
        }
    ),
)
rewards = [line["reward"] for line in followed.metrics() if "reward" in line]
print(
    f"the policy's mean reward: {rewards[0]:.3f} after imitation, {np.mean(rewards[-3:]):.3f} after"
    " following r(q, p)"
)
