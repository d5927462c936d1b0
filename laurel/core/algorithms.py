"""The algorithms by name, each in a line: what `--help` shows and checks use without torch.

The rows themselves are in `laurel.train.algorithms`, built from these names.
"""

ABOUT: dict[str, str] = {
    "sft": "likelihood of demonstrations (behaviour cloning)",
    "reinforce": "the score-function gradient, no baseline",
    "reinforce_baseline": "REINFORCE minus a running or batch-mean baseline",
    "rloo": "REINFORCE with the leave-one-out baseline: unbiased",
    "grpo": "group-standardised advantages, clipped ratio",
    "dr_grpo": "GRPO without the length and difficulty biases",
    "dapo": "GRPO with clip-higher, token mean, dynamic sampling, overlong shaping",
    "gspo": "GRPO with one ratio per sequence",
    "cispo": "detached, capped ratio: no token is ever dropped",
    "reinforce_pp": "token-level returns whitened over the batch, clipped ratio",
    "raft": "rejection sampling: imitate the best of each group",
    "hindsight": "every sample imitated under the instruction that it achieved",
    "es": "evolution strategies: perturbed parameters, scored and moved, no gradient",
    "dpo": "the margin between chosen and rejected, through a sigmoid",
    "cdpo": "DPO for labels that may be wrong",
    "robust_dpo": "DPO that undoes label flips",
    "ipo": "a margin with a target: bounded even for certain preferences",
    "simpo": "per-token margin without a reference",
    "orpo": "likelihood plus an odds ratio, without a reference",
    "dpop": "DPO that pays when the chosen answer falls",
    "kto": "answers labelled good or bad, no pairs",
    "online_dpo": "DPO on the policy's own best and worst, judged by a reward",
    "rrhf": "rank responses by length-normalised log-probability",
    "ppo": "a critic says what each token was worth (GAE); clipped ratio, clipped values",
    "ppo_max": (
        "PPO with what keeps it stable: rewards normalised and clipped, a critic from the reward"
        " model, warmed up"
    ),
    "ilql": (
        "implicit Q-learning from logged rewards: Q and V beside the policy, and inside the head"
        " that is saved"
    ),
    "gail": "adversarial imitation: a discriminator of demonstrations and samples is the reward",
    "reward": "a reward model from preference pairs (Bradley-Terry)",
    "reward_kwise": "a reward model from rankings of K answers, each prompt counting once",
    "reward_pl": "a reward model from rankings, best first (Plackett-Luce)",
    "orm": "outcome reward model: will this answer end well, at every token",
    "prm": "process reward model: each step wrong, neutral or right",
}
