"""A language small enough to list: every completion, its exact probability, and what follows
exactly from that.

Tokens are 0 .. V-1 and the last one ends a completion; a completion that reaches the horizon H
without it is cut off there.
Axis letters: X prompts, N completions, T tokens of a completion (at most H), S prefixes (the
states), V vocabulary. A policy is a table of logits [X, S, V], one row of logits per prompt and
prefix, so it can represent every distribution. All functions are differentiable in the logits and
meant for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.errors import UsageError


class Language:
    """All completions over V tokens up to length H. V = 3, H = 2: (2) (0 2) (1 2) (0 0) (0 1) (1 0)
    (1 1), seven in all.

    `completions` lists them; state_NT says in which prefix a token was chosen, token_NT which
    token, mask_NT where there is one.
    """

    def __init__(self, V: int, H: int) -> None:
        if V < 2 or H < 1:
            raise UsageError(
                f"a language needs two tokens and one step, not V = {V}, H = {H}.", where="Language"
            )
        self.V, self.H, self.eos = V, H, V - 1
        words = range(V - 1)
        ended = [
            (*start, self.eos) for length in range(H) for start in product(words, repeat=length)
        ]
        self.completions: tuple[tuple[int, ...], ...] = (*ended, *product(words, repeat=H))
        self.prefixes = tuple(
            start for length in range(H) for start in product(words, repeat=length)
        )
        state = {prefix: s for s, prefix in enumerate(self.prefixes)}
        self.N, self.S = len(self.completions), len(self.prefixes)
        self.length_N = torch.tensor([len(y) for y in self.completions])
        self.mask_NT = torch.arange(H) < self.length_N[:, None]
        self.token_NT, self.state_NT = (
            torch.zeros(self.N, H, dtype=torch.long),
            torch.zeros(self.N, H, dtype=torch.long),
        )
        for n, y in enumerate(self.completions):
            for t, token in enumerate(y):
                self.token_NT[n, t], self.state_NT[n, t] = token, state[y[:t]]

    def token_logp(self, logits_XSV: Tensor) -> Tensor:
        """log pi of every token of every completion, [X, S, V] -> [X, N, T]; 0 after its end."""
        logp_XSV = logits_XSV.log_softmax(2)
        return torch.where(self.mask_NT, logp_XSV[:, self.state_NT, self.token_NT], 0.0)

    def logp(self, logits_XSV: Tensor) -> Tensor:
        """log pi(y | x), the sum over its tokens: [X, S, V] -> [X, N]. The probabilities of a
        prompt sum to 1.
        """
        return self.token_logp(logits_XSV).sum(2)

    def token_scores(self, logits_XSV: Tensor) -> Tensor:
        """d log pi(y_t) / d logits, [X, S, V] -> [X, N, T, S, V]: the token chosen minus the
        probabilities, in its own state.

        Written out rather than differentiated, so that gradients can be checked without autograd.
        """
        p_XSV = logits_XSV.softmax(2)
        change_XNTV = torch.eye(self.V, dtype=p_XSV.dtype)[self.token_NT] - p_XSV[:, self.state_NT]
        here_NTS = torch.eye(self.S, dtype=p_XSV.dtype)[self.state_NT] * self.mask_NT[..., None]
        return here_NTS[None, ..., None] * change_XNTV[..., None, :]

    def ascent(self, logits_XSV: Tensor, weight_XN: Tensor) -> Tensor:
        """E[w(y) grad log pi(y)] for every prompt: [X, S, V]. With w = R it is the gradient of
        E[R], with any w + const the same.
        """
        p_XN = self.logp(logits_XSV).exp()
        return torch.einsum("xn,xnsv->xsv", p_XN * weight_XN, self.token_scores(logits_XSV).sum(2))

    def visits(self, logits_XSV: Tensor) -> Tensor:
        """How likely each prefix is passed: [X, S, V] -> [X, S]. The empty prefix: 1."""
        p_XN = self.logp(logits_XSV).exp()
        here_NS = (
            torch.eye(self.S, dtype=p_XN.dtype)[self.state_NT] * self.mask_NT[..., None]
        ).sum(1)
        return p_XN @ here_NS

    def logits_of(self, p_XN: Tensor) -> Tensor:
        """The table whose completions have the probabilities `p_XN`: log p(token | prefix), [X, N]
        -> [X, S, V].

        A prefix without mass gets equal logits; a token without mass -inf, written -1e9.
        """
        flow_XSV = torch.zeros(p_XN.shape[0], self.S, self.V, dtype=p_XN.dtype)
        for n in range(self.N):
            for t in range(int(self.length_N[n])):
                flow_XSV[:, self.state_NT[n, t], self.token_NT[n, t]] += p_XN[:, n]
        p_XSV = flow_XSV / flow_XSV.sum(2, keepdim=True)
        return torch.where(p_XSV.isnan(), 0.0, p_XSV.log().clamp(min=-1e9))

    def action_values(self, logits_XSV: Tensor, reward_XN: Tensor) -> tuple[Tensor, Tensor]:
        """Q(prefix, token) = E[R | prefix, token] and V(prefix) under the policy: [X, S, V] and [X,
        S], by backward induction.
        """
        return self.backward(reward_XN, lambda q_XV, s: (logits_XSV[:, s].softmax(1) * q_XV).sum(1))

    def soft_values(self, ref_XSV: Tensor, reward_XN: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """The same under the KL-regularised optimum: V(s) = beta log sum_a ref(a | s) exp(Q(s, a) /
        beta); V(empty) = beta log Z.
        """
        return self.backward(
            reward_XN,
            lambda q_XV, s: beta * (ref_XSV[:, s].log_softmax(1) + q_XV / beta).logsumexp(1),
        )

    def backward(
        self, reward_XN: Tensor, value: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Backward induction from the completions: Q [X, S, V] and V(s) = value(Q(s), s) [X, S],
        longest prefixes first.
        """
        where = {y: n for n, y in enumerate(self.completions)}
        Q_XSV = torch.zeros(reward_XN.shape[0], self.S, self.V, dtype=reward_XN.dtype)
        V_XS = torch.zeros(reward_XN.shape[0], self.S, dtype=reward_XN.dtype)
        for s in reversed(range(self.S)):
            for token in range(self.V):
                y = (*self.prefixes[s], token)
                Q_XSV[:, s, token] = (
                    reward_XN[:, where[y]] if y in where else V_XS[:, self.prefixes.index(y)]
                )
            V_XS[:, s] = value(Q_XSV[:, s], s)
        return Q_XSV, V_XS


def kl(logp_XN: Tensor, logq_XN: Tensor) -> Tensor:
    """KL(p || q) = sum_y p(y) (log p(y) - log q(y)) for each prompt, in nats: [X, N] -> [X]. p(y) =
    0 counts 0.

    p = (.5, .5), q = (.25, .75): .1438410. The reverse KL of post-training is kl(pi, ref), the
    forward one kl(ref, pi).
    """
    p_XN = logp_XN.exp()
    return torch.where(p_XN > 0, p_XN * (logp_XN - logq_XN), 0.0).sum(1)


def entropy(logp_XN: Tensor) -> Tensor:
    """-sum_y p(y) log p(y), in nats: [X, N] -> [X]. Four equal completions: 1.3862944."""
    p_XN = logp_XN.exp()
    return -torch.where(p_XN > 0, p_XN * logp_XN, 0.0).sum(1)


def log_partition(logref_XN: Tensor, reward_XN: Tensor, beta: float) -> Tensor:
    """log Z(x) = log sum_y ref(y | x) exp(R(x, y) / beta): [X]. beta log Z is the best value of
    E[R] - beta KL(pi || ref).
    """
    return (logref_XN + reward_XN / beta).logsumexp(1)


def optimum(logref_XN: Tensor, reward_XN: Tensor, beta: float) -> Tensor:
    """log pi*(y | x) = log ref + R / beta - log Z: [X, N], the maximiser of E[R] - beta KL(pi ||
    ref).

    ref = (.5, .5), R = (1, 0), beta = 1: pi* = (.7310586, .2689414). For any pi, its value falls
    short by beta KL(pi || pi*). Korbak et al. 2022, arXiv:2205.11275; Rafailov et al. 2023,
    arXiv:2305.18290.
    """
    return logref_XN + reward_XN / beta - log_partition(logref_XN, reward_XN, beta)[:, None]


def best_of_n(p_XN: Tensor, score_XN: Tensor, n: int) -> Tensor:
    """The distribution of the best of n samples, ties going to the first drawn: [X, N], exact.

        P_n(y) = ( F(score <= s)^n - F(score < s)^n ) p(y) / P(score = s),    s = score(y)

    p = (.5, .5), score = (1, 0), n = 2: (.75, .25). KL(P_n || p) <= log n - (n-1)/n, equal only
    without ties in the limit of small probabilities. Beirami et al. 2024, arXiv:2401.01879.
    """
    same_XNN = score_XN[:, :, None] == score_XN[:, None, :]
    below_XNN = score_XN[:, None, :] < score_XN[:, :, None]
    tie_XN, low_XN = (same_XNN * p_XN[:, None, :]).sum(2), (below_XNN * p_XN[:, None, :]).sum(2)
    return ((low_XN + tie_XN) ** n - low_XN**n) * p_XN / tie_XN


def bradley_terry_loss(score_XN: Tensor, reward_XN: Tensor, pair_XNN: Tensor) -> Tensor:
    """The population loss of a reward model: E over pairs (y, z) of the cross-entropy between P(y >
    z) and sigmoid(score difference).

    Preferences follow Bradley and Terry (1952): P(y > z) = sigmoid(R(y) - R(z)). pair_XNN is the
    law of the pairs, sum 1.
    """
    gap_XNN, prefer_XNN = (
        score_XN[:, :, None] - score_XN[:, None, :],
        (reward_XN[:, :, None] - reward_XN[:, None, :]).sigmoid(),
    )
    return (
        pair_XNN * (softplus(-gap_XNN) * prefer_XNN + softplus(gap_XNN) * (1 - prefer_XNN))
    ).sum()


def bradley_terry_scores(reward_XN: Tensor, p_XN: Tensor) -> Tensor:
    """The optimal scores under Bradley-Terry preferences: the reward up to a constant per prompt,
    here with mean 0 under p: [X, N].

    The constant cannot be known from comparisons within a prompt, so scores of different prompts
    must be centred before they are mixed or clipped.
    """
    return reward_XN - (p_XN * reward_XN).sum(1, keepdim=True)
