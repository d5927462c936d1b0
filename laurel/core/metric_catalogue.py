"""The catalogue of metrics: what each means, what is healthy, and what to check if it is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricMeaning:
    """What a metric is, its unit, what is healthy, and what to check when it is not.

    Outside [low, high] (None: no bound) a report raises a warning.
    """

    what: str
    unit: str
    healthy: str
    check: str
    low: float | None = None
    high: float | None = None


JUDGED = "what the run prints at its end: the same with intervals, beside trivial baselines"
READ_SAMPLES = "read samples.jsonl: what do the completions say, and why were they scored so?"
ENGINE = "the engine's weights, precision and template; learning_rate, if it grows"
SPEED = "token_budget and prompts_per_step: larger batches keep the machine busy"

CATALOGUE: dict[str, MetricMeaning] = {
    "reward": MetricMeaning(
        "mean reward of the sampled completions, failed ones left out",
        "reward",
        "rises, then levels off",
        READ_SAMPLES,
    ),
    "reward_std": MetricMeaning(
        "spread of the reward inside a group (samples of one prompt), averaged over groups",
        "reward",
        "above 0; shrinks as the task is solved",
        "near 0 nothing can be learned: harder or easier prompts, a higher temperature",
    ),
    "frac_reward_zero_std": MetricMeaning(
        "share of groups whose samples all have the same reward: they teach nothing",
        "share",
        "below .8",
        "is the task solved, or too easy or too hard for this model? dynamic_sampling=true replaces"
        " such groups",
        high=0.8,
    ),
    "informative_fraction": MetricMeaning(
        "share of groups whose rewards differ: 1 - frac_reward_zero_std",
        "share",
        "above .2",
        "as frac_reward_zero_std: difficulty of the prompts, num_generations, temperature",
        low=0.2,
    ),
    "zero_signal": MetricMeaning(
        "1 where a step was skipped because nothing in it counted: every weight 0, every sample"
        " masked, or every reward failed",
        "share of steps",
        "0, rarely more",
        "which: informative_fraction (difficulty of the prompts, num_generations),"
        " completions/clipped_ratio, failed_fraction",
        high=0.2,
    ),
    "resampled_groups": MetricMeaning(
        "groups replaced because they carried no signal",
        "groups",
        "few",
        "difficulty of the prompts; max_resamples bounds the cost",
    ),
    "rewards/*/mean": MetricMeaning(
        "mean of one reward function over the samples it scored",
        "reward",
        "rises with the whole",
        READ_SAMPLES,
    ),
    "rewards/*/failed": MetricMeaning(
        "share of samples on which this reward function broke (raised, hung, returned NaN)",
        "share",
        "0",
        "the reasons in samples.jsonl; reward_timeout if it says time",
        high=0.0,
    ),
    "rewards/*/abstained": MetricMeaning(
        "share of samples this reward function had no opinion on",
        "share",
        "as the task intends",
        "the columns the reward looks for",
    ),
    "failed_fraction": MetricMeaning(
        "share of samples excluded because a reward failed; the run stops above"
        " max_failed_fraction",
        "share",
        "0",
        "the reasons in samples.jsonl, then the reward function",
        high=0.0,
    ),
    "duplicates": MetricMeaning(
        "share of samples that repeat another sample of their group word for word",
        "share",
        "below .5 unless answers are a few tokens long",
        "entropy and temperature; if it is so from the first step, the seeds of the samples",
    ),
    "completions/mean_length": MetricMeaning(
        "mean length of a completion",
        "tokens",
        "steady, or moving for a reason you can name",
        READ_SAMPLES,
    ),
    "completions/max_length": MetricMeaning(
        "longest completion of the step",
        "tokens",
        "below max_completion_length",
        "completions/clipped_ratio",
    ),
    "completions/clipped_ratio": MetricMeaning(
        "share of completions cut off at max_completion_length",
        "share",
        "below .2",
        "max_completion_length; does the model know how to stop (eos, stop)?",
        high=0.2,
    ),
    "kl": MetricMeaning(
        "KL of the policy from the reference (k3, never negative) at every token sampled in the"
        " step, trained on or not",
        "nats per token",
        "0 at the first step, then below about .5",
        "beta and learning_rate; read samples for text that only the reward likes",
        low=-0.001,
        high=0.5,
    ),
    "kl/sequence": MetricMeaning(
        "the same, summed over a completion: of every completion of the step",
        "nats per completion",
        "0 at the first step, then below about 20",
        "beta and learning_rate; read samples for text that only the reward likes",
        low=-0.01,
        high=20.0,
    ),
    "entropy": MetricMeaning(
        "entropy of the next-token distribution: at every token sampled in the step, trained on or"
        " not; of data at the supervised ones",
        "nats per token",
        "falls slowly; 0 means one answer only",
        "learning_rate, epsilon_high, entropy_coef, beta",
        low=0.0,
    ),
    "approx_kl": MetricMeaning(
        "KL between the policy that sampled and the policy now (k3), over every token sampled in"
        " the step",
        "nats per token",
        "0 to about .02",
        "num_iterations and learning_rate: the samples have gone stale",
        high=0.1,
    ),
    "ratio/mean": MetricMeaning(
        "mean of pi / pi_old over every token sampled in the step",
        "ratio",
        "1 in the first pass, within 10 % of 1 later",
        "learning_rate, num_iterations",
        low=0.8,
        high=1.25,
    ),
    "ratio/max": MetricMeaning(
        "largest pi / pi_old of a token sampled in the step",
        "ratio",
        "1 in the first pass, below about 10 later",
        "learning_rate, num_iterations",
        high=100.0,
    ),
    "clip_ratio/region": MetricMeaning(
        "share of all sampled tokens that clipping silences: low and high together",
        "share",
        "0 in the first pass, below .3",
        "learning_rate and num_iterations: most of the step is being thrown away",
        high=0.3,
    ),
    "clip_ratio/low": MetricMeaning(
        "share clipped at the lower bound (ratio < 1 - epsilon, negative weight)",
        "share",
        "below .2",
        "learning_rate, epsilon",
        high=0.3,
    ),
    "clip_ratio/high": MetricMeaning(
        "share clipped at the upper bound (ratio > 1 + epsilon_high, positive weight)",
        "share",
        "below .2",
        "learning_rate, epsilon_high",
        high=0.3,
    ),
    "sampler_gap/mean": MetricMeaning(
        "mean size of (log-probability when sampled - when trained), same weights",
        "nats",
        "below .001 in float32, .02 in bfloat16",
        "dtype, dropout, chat template: two computations of one number disagree",
        high=0.05,
    ),
    "sampler_gap/p99": MetricMeaning(
        "99th percentile of that gap",
        "nats",
        "below .01 in float32, .1 in bfloat16",
        "as sampler_gap/mean",
        high=0.2,
    ),
    "sampler_gap/max": MetricMeaning(
        "largest such gap",
        "nats",
        "below .1 in float32, 1 in bfloat16",
        "as sampler_gap/mean",
        high=2.0,
    ),
    "sampling/sampling_logp_difference/mean": MetricMeaning(
        "sampler_gap/mean of an engine, by TRL's name",
        "nats",
        "below .001 in float32, .02 in bfloat16",
        ENGINE,
    ),
    "sampling/sampling_logp_difference/max": MetricMeaning(
        "sampler_gap/max of an engine, by TRL's name",
        "nats",
        "below .1 in float32, 1 in bfloat16",
        ENGINE,
    ),
    "sampling/importance_sampling_ratio/mean": MetricMeaning(
        "mean of what weights are multiplied by since an engine sampled: min(pi / sampler, cap) of"
        " a token, or a row's whole ratio (sequence_mask)",
        "ratio",
        "within 1 % of 1; of long rows within 10 %",
        ENGINE,
        low=0.8,
        high=1.25,
    ),
    "sampling/importance_sampling_ratio/min": MetricMeaning(
        "least of them; of sequence_mask 0 where a row is masked",
        "ratio",
        "above .5 in float32",
        ENGINE,
    ),
    "sampling/importance_sampling_ratio/max": MetricMeaning(
        "largest of them: at most importance_sampling_cap",
        "ratio",
        "at most the cap",
        ENGINE,
    ),
    "sampling/importance_sampling_ratio/truncated": MetricMeaning(
        "share of sampled tokens whose ratio is above importance_sampling_cap (token_truncate)",
        "share",
        "0 in float32, below .001 in bfloat16",
        ENGINE,
        high=0.01,
    ),
    "sampling/importance_sampling_ratio/masked": MetricMeaning(
        "share of sampled rows whose ratio is above importance_sampling_cap (sequence_mask)",
        "share",
        "0 in float32, below .1 in bfloat16; grows with the length of rows",
        "token_truncate, where rows are long: " + ENGINE,
        high=0.3,
    ),
    "loss": MetricMeaning(
        "value of the objective; for policy gradients it says nothing about progress and may be 0",
        "-",
        "any; falls for sft",
        "look at reward, informative_fraction and grad_norm instead",
    ),
    "grad_norm": MetricMeaning(
        "norm of the gradient before clipping",
        "-",
        "above 0, no lasting growth",
        "0: no informative group; large: learning_rate, max_grad_norm, a reward on a wild scale",
    ),
    "learning_rate": MetricMeaning(
        "the optimiser's learning rate in this step",
        "-",
        "as configured",
        "learning_rate, warmup_steps, lr_scheduler_type",
    ),
    "nll": MetricMeaning(
        "negative log-likelihood of the supervised tokens (sft)",
        "nats per token",
        "falls",
        "learning_rate; `laurel data show --tokens`: is the right span supervised?",
    ),
    "accuracy": MetricMeaning(
        "of a scorer in training: share of comparisons, last tokens or steps judged right",
        "share",
        "rises above .5 (or the share of the commonest class)",
        "at .5 for ever: learning_rate, swapped columns, answers cut off by max_length",
    ),
    "accuracy/tokens": MetricMeaning(
        "orm: share of tokens whose score has the sign of the outcome",
        "share",
        "below accuracy, rises",
        JUDGED,
    ),
    "margin": MetricMeaning(
        "score of the better answer minus that of the worse, averaged over pairs",
        "score",
        "rises, then levels off",
        "still rising at accuracy 1 is over-fitting: fewer steps, label_smoothing",
    ),
    "score/mean": MetricMeaning(
        "mean score of the answers compared",
        "score",
        "anything: only differences mean something",
        JUDGED,
    ),
    "imitation/nll": MetricMeaning(
        "with imitation_coef: minus log-likelihood of the best answers under the scorer's body and"
        " the language model's head",
        "nats per token",
        "falls, or stays",
        "rising: the comparison spoils the body; a larger imitation_coef, a lower learning_rate",
    ),
    "recall/wrong": MetricMeaning(
        "share of the wrong steps that are judged wrong",
        "share",
        "rises; 0 is the majority class talking",
        JUDGED,
    ),
    "recall/neutral": MetricMeaning(
        "share of the neutral steps that are judged neutral", "share", "rises", JUDGED
    ),
    "recall/right": MetricMeaning(
        "share of the right steps that are judged right",
        "share",
        "high from the start if most are right",
        JUDGED,
    ),
    "ptx/nll": MetricMeaning(
        "loss per token of the text that is mixed in", "nats", "does not rise", "ptx_coef: raise it"
    ),
    "value/mean": MetricMeaning(
        "what the critic says of the states that tokens were chosen in",
        "reward",
        "follows value/target",
        READ_SAMPLES,
    ),
    "value/target": MetricMeaning(
        "what came of them: the returns the critic is to predict",
        "reward",
        "rises with the reward",
        READ_SAMPLES,
    ),
    "value/target_square": MetricMeaning(
        "mean square of the returns; with the others it gives the explained variance",
        "reward^2",
        "finite",
        READ_SAMPLES,
    ),
    "value/error": MetricMeaning(
        "returns minus values",
        "reward",
        "near 0",
        "far from 0: vf_coef, learning_rate, critic_warmup_steps",
    ),
    "value/error_square": MetricMeaning(
        "squared error of the critic",
        "reward^2",
        "falls well below the spread of the returns",
        "critic_warmup_steps, critic_model",
    ),
    "clip_ratio/value": MetricMeaning(
        "share of tokens where the critic's step was clipped away",
        "share",
        "small",
        "cliprange_value is in units of the reward",
    ),
    "hindsight/relabelled": MetricMeaning(
        "share of samples that are trained on, under the instruction that they achieved",
        "share",
        "above .1",
        "the function relabel: does it know what these completions achieved? low means that most"
        " samples teach nothing",
        low=0.01,
    ),
    "hindsight/own": MetricMeaning(
        "share of samples that achieved the instruction they were given",
        "share",
        "rises, like the reward",
        READ_SAMPLES,
    ),
    "hindsight/too_long": MetricMeaning(
        "share of samples dropped because the achieved instruction is longer than"
        " max_prompt_length",
        "share",
        "0",
        "max_prompt_length",
        high=0.1,
    ),
    "es/reward_std": MetricMeaning(
        "spread of the mean rewards of a population's members",
        "reward",
        "above 0",
        "0: sigma is too small to change an answer, or prompts_per_step",
    ),
    "es/reward_best": MetricMeaning(
        "mean reward of a step's best member",
        "reward",
        "rises; a little above reward",
        READ_SAMPLES,
    ),
    "es/step_norm": MetricMeaning(
        "length of the step that all parameters took together",
        "-",
        "steady, above 0",
        "learning_rate and sigma; 0: no member differed",
    ),
    "implicit/q": MetricMeaning(
        "ilql: what the heads say of the tokens of the log, their mean",
        "reward",
        "follows implicit/reward",
        READ_SAMPLES,
    ),
    "implicit/value": MetricMeaning(
        "ilql: V of the states that tokens were logged in",
        "reward",
        "rises towards rewards that the log shows, not above them",
        "above the best logged reward: expectile too near 1, target_update too large",
    ),
    "implicit/reward": MetricMeaning(
        "ilql: mean logged reward of the step's rows",
        "reward",
        "as the data are",
        "the data's `reward`",
    ),
    "implicit/advantage": MetricMeaning(
        "ilql: the smaller slow copy of Q minus V at logged tokens",
        "reward",
        "at or below 0 with an expectile above .5",
        "far below 0: the copies have not caught up (target_update, more steps)",
    ),
    "implicit/q_loss": MetricMeaning(
        "ilql: squared error of both Q against r + gamma V of the next state",
        "reward^2",
        "falls",
        "learning_rate, more steps",
    ),
    "implicit/value_loss": MetricMeaning(
        "ilql: asymmetric squared error of V against the slow copies of Q",
        "reward^2",
        "small",
        "expectile",
    ),
    "implicit/cql_loss": MetricMeaning(
        "ilql: cross-entropy of both Q heads, before cql_coef",
        "nats per token",
        "falls from twice ln(vocabulary)",
        "cql_coef",
    ),
    "implicit/awac_loss": MetricMeaning(
        "ilql: weighted cross-entropy of the policy, before awac_coef",
        "nats per token",
        "falls",
        "awac_beta: are a few weights huge?",
    ),
    "discriminator/loss": MetricMeaning(
        "cross-entropy of telling demonstrations from samples, both sides counting the same; a"
        " perfect judge has ln 2 - JS(pi, pi_E)",
        "nats",
        "ln 2 = .693 at the first step, falls, then comes back as the policy nears the"
        " demonstrations",
        "near 0 and staying: the two are told apart by something that the policy cannot change;"
        " demonstrations/clipped_ratio",
    ),
    "discriminator/accuracy": MetricMeaning(
        "share told apart rightly, both sides counting the same; a tie counts half",
        "share",
        ".5 at the first step, rises, then comes back to .5",
        "1 for ever: sampled against memorised demonstrations; more of them, discriminator_rate,"
        " label_smoothing",
    ),
    "discriminator/demonstrations": MetricMeaning(
        "mean D = P(demonstration) of the demonstrations",
        "share",
        ".5 at the first step; ends beside discriminator/samples",
        READ_SAMPLES,
    ),
    "discriminator/samples": MetricMeaning(
        "mean D of the policy's samples",
        "share",
        "as discriminator/demonstrations, from below",
        READ_SAMPLES,
    ),
    "demonstrations/clipped_ratio": MetricMeaning(
        "share of demonstrations cut at max_completion_length, as samples are",
        "share",
        "0: what was cut off is never imitated",
        "max_completion_length",
        high=0.2,
    ),
    "beta": MetricMeaning(
        "the coefficient of KL where it is steered", "-", "settles", "kl_target, kl_horizon"
    ),
    "rewards/chosen": MetricMeaning(
        "implied reward of preferred (or good) answers, beta (log pi - log ref); rows without a"
        " reference: beta log pi; at beta 0: 0",
        "reward",
        "0 at the first step, then near or above 0",
        "logps/chosen; rpo_alpha or `dpop` where the chosen answers sink",
    ),
    "rewards/rejected": MetricMeaning(
        "implied reward of rejected (or bad) answers",
        "reward",
        "0 at the first step, then falls, by tens at most",
        "learning_rate and beta: is the policy pushed far from its reference?",
    ),
    "rewards/margins": MetricMeaning(
        "rewards/chosen - rewards/rejected, averaged over pairs",
        "reward",
        "0 at the first step, rises, then levels off",
        "still rising at accuracy 1 is over-fitting: fewer steps, a larger beta, `ipo`",
    ),
    "rewards/accuracies": MetricMeaning(
        "share of pairs whose chosen answer has the larger implied reward; a tie counts half",
        "share",
        ".5 at the first step, then rises; .6 to .8 on people's preferences",
        "1 within a few steps: do length or format give the answer away? .5 for ever:"
        " learning_rate, swapped columns",
    ),
    "logps/chosen": MetricMeaning(
        "log-probability of preferred (or good) answers, summed over tokens",
        "nats per answer",
        "level or rising",
        "falling: only the margin grows, and probability goes to answers that nobody compared;"
        " rpo_alpha, `dpop`, `orpo`",
    ),
    "logps/rejected": MetricMeaning(
        "log-probability of rejected (or bad) answers, summed over tokens",
        "nats per answer",
        "falls, but not without end",
        "as rewards/rejected; in hundreds: learning_rate",
    ),
    "eval/margin": MetricMeaning(
        "the margin of scores on held-out rows", "score", "moves like margin", JUDGED
    ),
    "eval/score/*": MetricMeaning("the mean score on held-out rows", "score", "anything", JUDGED),
    "eval/recall/*": MetricMeaning(
        "recall of one class of steps on held-out rows", "share", "moves like recall/...", JUDGED
    ),
    "eval/accuracy/*": MetricMeaning(
        "orm: accuracy per token on held-out rows", "share", "moves like accuracy/tokens", JUDGED
    ),
    "eval/rewards/*": MetricMeaning(
        "rewards/chosen, rejected, margins or accuracies on held-out rows, dropout off",
        "as without eval/",
        "moves like the metric of the training rows",
        "accuracies far below the training rows': over-fitting, or near-copies among the training"
        " prompts",
    ),
    "eval/logps/*": MetricMeaning(
        "logps/chosen or rejected on held-out rows",
        "nats per answer",
        "chosen level or rising, rejected falls",
        "logps/chosen",
    ),
    "supervised_tokens": MetricMeaning(
        "tokens trained on in this step",
        "tokens",
        "above 0",
        "train_on, max_length: is everything masked or cut?",
        low=1.0,
    ),
    "eval/accuracy": MetricMeaning(
        "share of held-out prompts answered rightly, greedy",
        "share",
        "rises",
        "rising reward with flat accuracy: over-fitting, or a reward that can be gamed",
    ),
    "eval/reward": MetricMeaning(
        "mean reward on held-out prompts, greedy", "reward", "rises", "as eval/accuracy"
    ),
    "eval/nll": MetricMeaning(
        "negative log-likelihood of held-out supervised tokens",
        "nats per token",
        "falls; rising again is over-fitting",
        "fewer steps, more data, weight_decay",
    ),
    "eval/samples": MetricMeaning(
        "held-out prompts evaluated",
        "prompts",
        "200 or more: at 200 a share of .5 is known to 7 points",
        "eval_size",
    ),
    "tokens": MetricMeaning(
        "tokens sampled in this step", "tokens", "steady", "completions/mean_length"
    ),
    "tokens_per_second": MetricMeaning(
        "sampled and trained tokens per second of the step", "tokens/s", "steady", SPEED
    ),
    "seconds/sample": MetricMeaning(
        "time spent sampling", "seconds", "the largest part of a step", SPEED
    ),
    "seconds/score": MetricMeaning(
        "time spent in reward functions",
        "seconds",
        "a small part of a step",
        "a slow reward function: make it async, or lower reward_timeout",
    ),
    "seconds/update": MetricMeaning(
        "time spent in forward, backward and optimiser", "seconds", "less than sampling", SPEED
    ),
    "seconds/step": MetricMeaning(
        "time of the whole step",
        "seconds",
        "steady",
        "which of sample, score and update it is made of",
    ),
    "padding_share": MetricMeaning(
        "share of computed positions that are padding",
        "share",
        "below .5",
        "rows of very different length; token_budget",
        high=0.5,
    ),
    "rss_mb": MetricMeaning(
        "memory of the process",
        "MB",
        "level after the first steps",
        "steady growth is a leak: say so in an issue",
    ),
}
