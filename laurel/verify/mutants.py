"""Deliberate mistakes: one line of the training code is changed, and the checks must notice.

A mutant is a function, a piece of its source, and what stands there instead. The changed source is compiled in the function's
own module and its code put in the function's place, so every caller meets the mistake, however it came by the function.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from laurel.core.errors import LaurelError
from laurel.core.sample import Batch
from laurel.objective import discriminator, implicit, kl, policy, preference, ratio, reward, unit, value
from laurel.policy import compact, decode, logprob, model, sampler
from laurel.policy import discriminator as policy_discriminator
from laurel.policy import implicit as heads
from laurel.reward import process
from laurel.rollout import pack
from laurel.train import adversary, evolve, loop, optimizer, reference, relabel, setup
from laurel.verify.finding import Finding
from laurel.weight import advantage, control, group, population, shape, token


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in the source of `function`; `new` is the mistake, `name` says it in words."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str


@dataclass(frozen=True)
class Verdict:
    """Which finding noticed a mutant; empty: nobody did."""

    mutant: Mutant
    killer: str

    @property
    def killed(self) -> bool:
        return bool(self.killer)


MISTAKES: tuple[tuple[str, Callable[..., Any], str, str], ...] = (
    ("the likelihood's sign is flipped", policy.likelihood, "return -batch", "return batch"),
    ("the loss mask is dropped", ratio.trained, "torch.where(batch.loss_mask_NT, x_NT, 0.0)", "x_NT"),
    ("the pessimistic minimum becomes a maximum", policy.surrogate, "torch.minimum", "torch.maximum"),
    ("clip bounds are exchanged", policy.surrogate, "clamp(1 - low, 1 + high)", "clamp(1 - high, 1 + low)"),
    ("nothing is clipped", policy.surrogate, "ratio_NT.clamp(1 - low, 1 + high) * weight_NT", "ratio_NT * weight_NT"),
    ("the ratio is inverted", ratio.log_ratio, "logp_NT - batch.logp_old_NT", "batch.logp_old_NT - logp_NT"),
    ("the dual clip hits positive weights", policy.clip, "batch.weight_NT < 0", "batch.weight_NT > 0"),
    ("the sequence ratio is a product, not a geometric mean", ratio.sequence_log_ratio, "keepdim=True) / length_N1", "keepdim=True)"),
    ("the detached ratio is not detached", policy.detached_ratio, ".detach()", ""),
    ("the ratio's cap is missing", policy.detached_ratio, ".clamp(max=epsilon_high)", ""),
    ("the mean is the batch's, not the group's", group.centred, "reward_PG.nanmean(1, keepdim=True)", "reward_PG.nanmean()"),
    ("leave-one-out forgets n/(n-1)", group.leave_one_out, "* n_P1 / (n_P1 - 1).clamp(min=1)", ""),
    ("the spread divides by n", group.spread, "present_PG.sum(1, keepdim=True) - 1", "present_PG.sum(1, keepdim=True)"),
    ("the batch's spread is used for the group's", group.standardised, 'scale_rewards == "group"', 'scale_rewards == "batch"'),
    ("the baseline is added", group.minus_baseline, "reward_PG - running_mean", "reward_PG + running_mean"),
    ("the worst is selected, not the best", group.selected, "-torch.inf).argmax", "torch.inf).argmin"),
    ("an unjudged sample counts as a zero", group.centred, "reward_PG.nanmean(1", "reward_PG.nan_to_num(0.0).mean(1"),
    ("a row is divided by the padded width", unit.seq_mean_token_mean, "/ length_N1", "/ batch.loss_mask_NT.shape[1]"),
    ("the token mean counts padding", unit.token_mean, "batch.loss_mask_NT.sum()", "batch.loss_mask_NT.numel()"),
    ("rows without a trained token are counted", unit.rows, "batch.loss_mask_NT.any(1).sum()", "torch.tensor(len(batch))"),
    ("the constant length is the padded width", unit.token_sum_over_const, "* max_completion_length", "* batch.loss_mask_NT.shape[1]"),
    ("each micro-batch divides by its own count", loop.update, "unit(micro), total)", "unit(micro), unit(micro).count)"),
    ("silent rows leave before they are counted", loop.update, "unit(batch).count", "unit(with_signal(setup, batch)).count"),
    ("rows with a negative weight are left out", loop.with_signal, "0.0) != 0)", "0.0) > 0)"),
    ("the reference joins by position, not by key", reference.computed, "[rows[key] for key in micro.keys]", "list(range(len(micro)))"),
    ("the last micro-batch is lost", Batch.split, "if chunk:", "if False:"),
    ("gradients of one pass stay for the next", optimizer.optimizer_step, "optimizer.zero_grad(set_to_none=True)", "pass"),
    ("the temperature is forgotten", logprob.token_logprobs, "wide(logits_MV) / temperature_M[:, None]", "wide(logits_MV)"),
    ("the prediction is read one position late", model.trained_positions, "+ times - 1", "+ times"),
    ("k3 in the loss has no ratio", kl.kl_loss, "ratio_NT * (d_NT - 1)", "(d_NT - 1)"),
    ("k2 in the loss differentiates the ratio", kl.kl_loss, "ratio_NT.detach()", "ratio_NT"),
    ("the exact KL is the forward one", kl.exact_kl, "logp_NTV - logp_ref_NTV", "logp_ref_NTV - logp_NTV"),
    ("KL is added to the loss with a minus", loop.penalties, "terms + config.beta * kl_NT", "terms - config.beta * kl_NT"),
    ("entropy is punished, not rewarded", loop.penalties, "terms - config.entropy_coef", "terms + config.entropy_coef"),
    ("KL in the reward is a bonus", pack.sample_rewards, "reward_PG - kl_coef", "reward_PG + kl_coef"),
    ("KL in the reward is averaged over tokens", pack.sample_rewards, ".sum(1)", ".mean(1)"),
    ("k1 is measured on padding, too", pack.k1_of, "logp_ref_NT, 0.0)", "logp_ref_NT, 1.0)"),
    ("the reward stands on the first padding", token.place_reward, "(length_N - 1)", "(length_N)"),
    ("rewards are not carried back to earlier tokens", token.return_to_go, "return_NT + gamma", "return_NT + 0 * gamma"),
    ("whitening looks at padding", token.whiten, "x_M = x_NT[mask_NT]", "x_M = x_NT.flatten()"),
    ("whitening keeps the mean", token.whiten, "(x_NT - mean) / (std + eps)", "x_NT / (std + eps)"),
    ("the overlong penalty is a bonus", shape.overlong, ".clamp(-1.0, 0.0)", ".clamp(-1.0, 0.0).abs()"),
    ("truncated rows are trained on", pack.pack, "mask_truncated and s.finish", "not mask_truncated and s.finish"),
    ("rewards of a group are read backwards", pack.reward_matrix, "for r in group.rewards]", "for r in group.rewards[::-1]]"),
    ("weights of a group's samples are exchanged", loop.weigh, "weight_PG.reshape(-1, 1)", "weight_PG.flip(1).reshape(-1, 1)"),
    ("equal rewards are not recognised", group.informative, "> 1e-9 * torch.maximum(high_P.abs(), low_P.abs())", "> -1"),
    ("the margin adds both sides", preference.margin, "grade(batch) * log_ratios", "grade(batch).abs() * log_ratios"),
    ("the margin forgets the reference", preference.log_ratios, "logp_NT - batch.logp_ref_NT", "logp_NT"),
    ("the margin is a mean over tokens", preference.log_ratios, ".sum(1)", ".mean(1)"),
    ("smoothing is not taken from the right side", preference.dpo, "(1 - label_smoothing) *", "(1 + label_smoothing) *"),
    ("flips are added, not taken away", preference.robust_dpo, "softplus(-z_P) - label_smoothing", "softplus(-z_P) + label_smoothing"),
    ("IPO's target is 1 / beta", preference.ipo, "1 / (2 * beta)", "1 / beta"),
    ("SimPO sums over tokens", preference.simpo, "/ length(batch)", ""),
    ("ORPO compares log-probabilities, not odds", preference.orpo, "mean_N - log1mexp(", "mean_N - 0 * log1mexp("),
    ("DPOP rewards the fall", preference.dpop, "- dpop_lambda * fallen_P", "+ dpop_lambda * fallen_P"),
    ("KTO's reference point is 0", preference.kto, "- batch.target_NT[:, 0]", ""),
    ("KTO's weights are exchanged", preference.kto, "desirable_weight * (-away_N)", "undesirable_weight * (-away_N)"),
    ("the ranking hinge is on the right order", preference.rrhf, "(p_N[:, None] - p_N)", "(p_N - p_N[:, None])"),
    ("every equal best is imitated", preference.rrhf, "& ~equal_before_NN.any(1)", ""),
    ("the chosen answer's likelihood is a sum", preference.chosen_nll, ".sum(1) / length(batch)", ".sum(1)"),
    ("the pair is the first and the worst", group.best_and_worst, "-torch.inf).argmax(1", "-torch.inf).argmin(1"),
    ("comparisons of nothing are counted", unit.comparison_mean, "compares_P.sum())", "torch.tensor(len(compares_P)))"),
    ("micro-batches part a pair", loop.update, "whole_groups=setup.by_comparison", "whole_groups=False"),
    ("the score is read one token early", reward.last_score, "batch.length_N - 1", "batch.length_N - 2"),
    ("the margin is added to the gap", reward.bradley_terry, "h_P = h_P - by_group", "h_P = h_P + by_group"),
    ("centring forgets the square", reward.bradley_terry, "* r_N, batch).square()", "* r_N, batch).abs()"),
    ("a ranking counts all its pairs", reward.k_wise, "/ pairs_P.clamp(min=1)", ""),
    ("the best is chosen among all, again and again", reward.plackett_luce, "better_NN | torch.eye", "better_NN | better_NN.T | torch.eye"),
    ("the outcome is said the wrong way round", reward.outcome, "- batch.target_NT * s_NT", "- (1 - batch.target_NT) * s_NT"),
    ("step labels are shifted by one class", reward.step_class, "+ 1).round()", "+ 2).round().clamp(max=2)"),
    ("lambda is forgotten", reward.k_wise, "reward_coef * reliability", "reliability"),
    ("the first pairs are taken, not a sample", reward.some_pairs, "sorted(drawn)[:m]", "drawn[:m]"),
    ("a sample of pairs is divided by all of them", reward.k_wise, "better_NN.sum(1).to(r_N.dtype)", "better(batch).sum(1).to(r_N.dtype)"),
    ("the worst answer is imitated", reward.best, "better_NN.any(1) & ~better_NN.any(0)", "better_NN.any(0) & ~better_NN.any(1)"),
    ("imitation is a sum over tokens", reward.imitation, " / batch.loss_mask_NT.sum(1).clamp(min=1)", ""),
    ("a term is used where its option is 0", setup.Setup.terms, "or getattr(", "or not getattr("),
    ("a right step counts as a wrong one", process.sound, "[:, 0]", "[:, 2]"),
    ("steps are added, not multiplied", process.product, ".prod()", ".sum()"),
    ("reliability is ignored", reward.reliability, "torch.where(least_P.isinf(), 0.0, least_P)", "torch.ones_like(least_P)"),
    ("the value after the last token is not 0", advantage.gae, "value_NK[:, 1:], (0, 1))", "value_NK[:, 1:], (0, 1), value=1.0)"),
    ("the advantage forgets the value of now", advantage.gae, "- value_NK", ""),
    ("lambda discounts the rewards", advantage.gae, "gamma * next_NK", "gamma * lam * next_NK"),
    ("returns are advantages", advantage.gae, "advantage_NT + value_NT, 0.0)", "advantage_NT, 0.0)"),
    ("Q looks at the value of its own state", implicit.following, "value=T)[:, 1:]", "value=T)[:, :-1]"),
    ("something comes behind the last token", implicit.following, "batch), (0, 1)).gather", "batch), (0, 1), value=1.0).gather"),
    ("the reward is paid at every token", implicit.backup, "torch.where(last_NT, batch.weight_NT, 0.0)", "batch.weight_NT"),
    ("the expectile's sides are exchanged", implicit.asymmetric, "u < 0", "u > 0"),
    ("V is pulled by the Q it should teach", implicit.losses, "batch, gamma).detach()", "batch, gamma)"),
    ("the weight of a token takes gradient", implicit.losses, ".exp().detach()", ".exp()"),
    ("Q of tokens never seen is raised", implicit.implicit_q, "+ cql_coef * found.cql", "- cql_coef * found.cql"),
    ("V looks at the larger of the copies", heads.Heads.seen, ".amin(0)", ".amax(0)"),
    ("V looks at the heads, not at their slow copies", heads.Heads.seen, 'self.all("target")', 'self.all("q")'),
    ("the slow copies stand still", heads.Heads.follow, "self.target_update", "0.0"),
    ("nobody tells the slow copies to follow", loop.update, "if setup.companion is not None:", "if False:"),
    ("the saved head adds up its heads", heads.folded, ".mean(0)", ".sum(0)"),
    ("the critic's error is not squared", value.squares, ".square()", ".abs()"),
    ("the missing end is rewarded", control.missing_eos, "reward_N - missing_eos_penalty", "reward_N + missing_eos_penalty"),
    ("rows of no advantage teach the critic nothing", loop.with_signal, "setup.companion is not None or", ""),
    ("advantages are not whitened", loop.weigh, "parallel.jointly(whiten, advantage_NT, batch.loss_mask_NT)", "advantage_NT"),
    ("D is the policy's, not the demonstrations'", discriminator.sides, "1 / shown_N, -1 / drawn_N", "-1 / shown_N, 1 / drawn_N"),
    ("samples outvote their demonstration", discriminator.sides, "1 / shown_N, -1 / drawn_N", "1, -1"),
    ("-log(1 - D) is paid with D turned round", discriminator.imitation, '"gail": softplus(logit_N)', '"gail": softplus(-logit_N)'),
    ("labels are smoothed the wrong way", discriminator.discriminate, "label_smoothing * wrong_N", "-label_smoothing * wrong_N"),
    ("the policy is trained on demonstrations", adversary.appended, "(*group.rewards, None)", "(*group.rewards, 0.0)"),
    ("the discriminator of the first step judges for ever", adversary.judged, "= setup.companion",
     '= setup.__dict__.setdefault("first", __import__("copy").deepcopy(setup.companion))'),
    ("the discriminator is not trained", setup.Setup.trainable, "self.companion.trainable() if self.companion", "{} if self.companion"),
    ("whole rows are counted twice", unit.row_mean, "torch.tensor(len(batch)", "torch.tensor(2 * len(batch)"),
    ("the discriminator reads one token early", policy_discriminator.Discriminator.logits, "batch.length_N - 1", "batch.length_N - 2"),
    ("normalised scores are not clipped", control.Moments.normalise, "z_PG.clamp(-clip, clip) if clip > 0 else z_PG", "z_PG"),
    ("scores are normalised by their sum of squares", control.Moments.normalise, "self.std if", "self.square if"),
    ("one stream of noise for every tensor", evolve.noise, 'f"tensor {tensor}"', '"tensor"'),
    ("both members of a pair go the same way", evolve.perturbed, "-1.0 if member % 2 else 1.0", "1.0"),
    ("members leave their noise behind", evolve.perturbed, "parameter.copy_(before)", "pass"),
    ("the weights of a pair are added", population.search_gradient, "weight_M[0::2] - weight_M[1::2]", "weight_M[0::2] + weight_M[1::2]"),
    ("the step of a population forgets sigma", population.search_gradient, "(len(weight_M) * sigma)", "len(weight_M)"),
    ("equally good members do not share their rank", population.shaped, "+ ties_M / 2", ""),
    ("the instruction stays the one that was asked", relabel.hindsight, "s if i is None else replace(s, prompt_ids=i)", "s"),
    ("the reward stays the one asked for", relabel.hindsight, "1.0 if fit else None for fit in fits", "r for r in group.rewards"),
    ("a sample that achieved nothing is trained on", relabel.hindsight, "1.0 if fit else None", "1.0"),
    ("the sampler forgets the temperature", sampler.draw, "(temperature or 1.0)", "1.0"),
    ("the sampler draws by the wrong uniform", sampler.draw, "uniform_N.to(total_NV.dtype)", "uniform_N.to(total_NV.dtype).square()"),
    ("the compact decoder forgets the temperature", compact.Compact.draw, "(temperature or 1.0)", "1.0"),
    ("the compact decoder draws by the wrong uniform", decode.Decoder.take, "uniforms[sample, time]", "uniforms[sample, time].square()"),
)  # fmt: skip
MUTANTS = tuple(Mutant(*mistake) for mistake in MISTAKES)


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The mistake, for as long as the context lasts."""
    function: Any = inspect.unwrap(mutant.function)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutant.old) < 1:
        raise LaurelError(f"`{mutant.old}` is no longer in the source of {function.__qualname__}.", where="mutants", fix="Mend the mutant.")
    tree = ast.parse("from __future__ import annotations\n" + source.replace(mutant.old, mutant.new))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    space: dict[str, Any] = dict(function.__globals__)
    exec(compile(tree, f"<mutant: {mutant.name}>", "exec"), space)
    before, function.__code__ = function.__code__, space[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before


def hunt(mutant: Mutant, checks: Callable[[], Iterable[Finding]]) -> Verdict:
    """Run the checks on broken code until one fails. A check that stops with an error has noticed, too."""
    with broken(mutant):
        try:
            for finding in checks():
                if not finding.passed:
                    return Verdict(mutant, f"{finding.method}: {finding.quantity}")
        except Exception as error:  # whatever a mistake breaks is its discovery; an interrupt is no Exception
            return Verdict(mutant, f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")
    return Verdict(mutant, "")
