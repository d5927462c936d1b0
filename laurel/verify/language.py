"""A language small enough to list: every completion, its exact probability, what follows from it.

Tokens are 0 .. V-1 and the last one ends a completion; a completion that reaches the horizon H
without it is cut off there.

Axis letters: X prompts, N completions, T tokens of a completion (at most H), S prefixes (the
states), V vocabulary.

A policy is a table of logits [X, S, V], one row of logits per prompt and prefix, so it can
represent every distribution. All functions are differentiable in the logits and meant for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, product

import torch
from torch import Tensor
from torch.nn.functional import softplus

from laurel.core.errors import UsageError

Tokens = tuple[int, ...]
Values = tuple[Tensor, Tensor]
"""Q [X, S, V] and V [X, S]."""


class Language:
    """All completions over V tokens up to length H.

    V = 3, H = 2: (2) (0 2) (1 2) (0 0) (0 1) (1 0) (1 1), seven in all.

    `completions` lists them; state_NT says in which prefix a token was chosen, token_NT which
    token, mask_NT where there is one.
    """

    def __init__(self, V: int, H: int) -> None:
        if V < 2 or H < 1:
            raise UsageError(
                f"a language needs two tokens and one step, not V = {V}, H = {H}.", where="Language"
            )
        self.V = V
        self.H = H
        self.eos = V - 1
        # all texts of 0, 1, ..., H tokens without the end token, the short ones first
        words = range(self.eos)
        texts = [tuple(product(words, repeat=length)) for length in range(H + 1)]
        self.prefixes: tuple[Tokens, ...] = tuple(chain(*texts[:H]))
        ended = [(*prefix, self.eos) for prefix in self.prefixes]
        self.completions: tuple[Tokens, ...] = (*ended, *texts[H])
        self.N = len(self.completions)
        self.S = len(self.prefixes)
        lengths = [len(y) for y in self.completions]
        self.length_N = torch.tensor(lengths)
        self.mask_NT = torch.arange(H) < self.length_N[:, None]
        shape = (self.N, H)
        self.token_NT = torch.zeros(shape, dtype=torch.long)
        self.state_NT = torch.zeros(shape, dtype=torch.long)
        self._fill()

    def _fill(self) -> None:
        """Fill token_NT and state_NT, completion by completion."""
        state = {prefix: s for s, prefix in enumerate(self.prefixes)}
        for n, y in enumerate(self.completions):
            for t, token in enumerate(y):
                before = y[:t]
                self.token_NT[n, t] = token
                self.state_NT[n, t] = state[before]

    def choices(self, n: int) -> list[tuple[int, int]]:
        """The state and the token of every token of completion n."""
        length = int(self.length_N[n])
        states = self.state_NT[n].tolist()
        tokens = self.token_NT[n].tolist()
        return list(zip(states, tokens, strict=True))[:length]

    def token_logp(self, logits_XSV: Tensor) -> Tensor:
        """log pi of every token of every completion, [X, S, V] -> [X, N, T]; 0 after its end."""
        logp_XSV = logits_XSV.log_softmax(2)
        # two index tensors [N, T]: the entry of each token in the row of the prefix before it
        logp_XNT = logp_XSV[:, self.state_NT, self.token_NT]
        return torch.where(self.mask_NT, logp_XNT, 0.0)

    def logp(self, logits_XSV: Tensor) -> Tensor:
        """log pi(y | x), the sum over its tokens: [X, S, V] -> [X, N].

        The probabilities of a prompt sum to 1.
        """
        return self.token_logp(logits_XSV).sum(2)

    def token_scores(self, logits_XSV: Tensor) -> Tensor:
        """d log pi(y_t) / d logits, [X, S, V] -> [X, N, T, S, V].

        The token chosen (one-hot) minus the probabilities, in its own state; 0 in other states.
        Written out rather than differentiated, so that gradients can be checked without autograd.
        """
        p_XSV = logits_XSV.softmax(2)
        one_hot_VV = torch.eye(self.V, dtype=p_XSV.dtype)
        chosen_NTV = one_hot_VV[self.token_NT]
        change_XNTV = chosen_NTV - p_XSV[:, self.state_NT]
        here_NTS = self._states(p_XSV.dtype)
        return here_NTS[None, ..., None] * change_XNTV[..., None, :]

    def _states(self, dtype: torch.dtype) -> Tensor:
        """[N, T, S] the state of each token, one-hot; 0 after the end."""
        one_hot_SS = torch.eye(self.S, dtype=dtype)
        state_NTS = one_hot_SS[self.state_NT]
        return state_NTS * self.mask_NT[..., None]

    def ascent(self, logits_XSV: Tensor, weight_XN: Tensor) -> Tensor:
        """E[w(y) grad log pi(y)] for every prompt: [X, S, V].

        With w = R it is the gradient of E[R], with any w + const the same.
        """
        p_XN = self.logp(logits_XSV).exp()
        score_XNSV = self.token_scores(logits_XSV).sum(2)
        return torch.einsum("xn,xnsv->xsv", p_XN * weight_XN, score_XNSV)

    def visits(self, logits_XSV: Tensor) -> Tensor:
        """How likely each prefix is passed: [X, S, V] -> [X, S]. The empty prefix: 1."""
        p_XN = self.logp(logits_XSV).exp()
        here_NS = self._states(p_XN.dtype).sum(1)
        return p_XN @ here_NS

    def logits_of(self, p_XN: Tensor) -> Tensor:
        """The table whose completions have these probabilities, [X, N] -> [X, S, V].

        Its entries are log p(token | prefix). A prefix without mass gets equal logits; a token
        without mass -inf, written -1e9.
        """
        shape = (len(p_XN), self.S, self.V)
        flow_XSV = torch.zeros(shape, dtype=p_XN.dtype)
        for n in range(self.N):
            for state, token in self.choices(n):
                flow_XSV[:, state, token] += p_XN[:, n]
        p_XSV = flow_XSV / flow_XSV.sum(2, keepdim=True)
        logp_XSV = p_XSV.log().clamp(min=-1e9)
        return torch.where(p_XSV.isnan(), 0.0, logp_XSV)

    def action_values(self, logits_XSV: Tensor, reward_XN: Tensor) -> Values:
        """Q(prefix, token) and V(prefix) under the policy, by backward induction.

        Q(prefix, token) = E[R | prefix, token]    [X, S, V]
        V(prefix)        = E[R | prefix]           [X, S]
        """

        def mean(q_XV: Tensor, s: int) -> Tensor:
            p_XV = logits_XSV[:, s].softmax(1)
            return (p_XV * q_XV).sum(1)

        return self.backward(reward_XN, mean)

    def soft_values(self, ref_XSV: Tensor, reward_XN: Tensor, beta: float) -> Values:
        """Q and V under the KL-regularised optimum: [X, S, V] and [X, S].

        V(s) = beta log sum_a ref(a | s) exp(Q(s, a) / beta),    V(empty) = beta log Z
        """

        def soft_mean(q_XV: Tensor, s: int) -> Tensor:
            logref_XV = ref_XSV[:, s].log_softmax(1)
            return beta * (logref_XV + q_XV / beta).logsumexp(1)

        return self.backward(reward_XN, soft_mean)

    def backward(self, reward_XN: Tensor, value: Callable[[Tensor, int], Tensor]) -> Values:
        """Backward induction from the completions, longest prefixes first: Q and V.

        Q(s, a) = R of the completion that ends here, or V(s a)    [X, S, V]
        V(s)    = value(Q(s), s)                                   [X, S]
        """
        completion = {y: n for n, y in enumerate(self.completions)}
        state = {prefix: s for s, prefix in enumerate(self.prefixes)}
        shape = (len(reward_XN), self.S, self.V)
        Q_XSV = torch.zeros(shape, dtype=reward_XN.dtype)
        V_XS = Q_XSV[..., 0].clone()
        for s in reversed(range(self.S)):
            q_XV = Q_XSV[:, s]
            for token in range(self.V):
                y = (*self.prefixes[s], token)
                if y in completion:
                    q_XV[:, token] = reward_XN[:, completion[y]]
                else:
                    q_XV[:, token] = V_XS[:, state[y]]
            V_XS[:, s] = value(q_XV, s)
        return Q_XSV, V_XS


def kl(logp_XN: Tensor, logq_XN: Tensor) -> Tensor:
    """KL(p || q) of each prompt, in nats: [X, N] -> [X].

        KL(p || q) = sum_y p(y) (log p(y) - log q(y)),    p(y) = 0 counts 0

    p = (.5, .5), q = (.25, .75): .1438410. The reverse KL of post-training is kl(pi, ref), the
    forward one kl(ref, pi).
    """
    p_XN = logp_XN.exp()
    term_XN = p_XN * (logp_XN - logq_XN)
    return torch.where(p_XN > 0, term_XN, 0.0).sum(1)


def entropy(logp_XN: Tensor) -> Tensor:
    """-sum_y p(y) log p(y), in nats: [X, N] -> [X]. Four equal completions: 1.3862944."""
    p_XN = logp_XN.exp()
    term_XN = p_XN * logp_XN
    term_XN = torch.where(p_XN > 0, term_XN, 0.0)
    return -term_XN.sum(1)


def log_partition(logref_XN: Tensor, reward_XN: Tensor, beta: float) -> Tensor:
    """log Z(x) = log sum_y ref(y | x) exp(R(x, y) / beta): [X].

    beta log Z is the best value of E[R] - beta KL(pi || ref).
    """
    return (logref_XN + reward_XN / beta).logsumexp(1)


def optimum(logref_XN: Tensor, reward_XN: Tensor, beta: float) -> Tensor:
    """log pi*(y | x), the maximiser of E[R] - beta KL(pi || ref): [X, N].

        log pi* = log ref + R / beta - log Z

    ref = (.5, .5), R = (1, 0), beta = 1: pi* = (.7310586, .2689414). For any pi, its value falls
    short by beta KL(pi || pi*). Korbak et al. 2022, arXiv:2205.11275; Rafailov et al. 2023,
    arXiv:2305.18290.
    """
    logZ_X = log_partition(logref_XN, reward_XN, beta)
    return logref_XN + reward_XN / beta - logZ_X[:, None]


def best_of_n(p_XN: Tensor, score_XN: Tensor, n: int) -> Tensor:
    """The distribution of the best of n samples, ties going to the first drawn: [X, N], exact.

        P_n(y) = ( F(score <= s)^n - F(score < s)^n ) p(y) / P(score = s),    s = score(y)

    p = (.5, .5), score = (1, 0), n = 2: (.75, .25). KL(P_n || p) <= log n - (n-1)/n, equal only
    without ties in the limit of small probabilities. Beirami et al. 2024, arXiv:2401.01879.
    """
    own_XN1 = score_XN[:, :, None]
    other_X1N = score_XN[:, None, :]
    p_X1N = p_XN[:, None, :]
    tie_XN = ((own_XN1 == other_X1N) * p_X1N).sum(2)
    low_XN = ((other_X1N < own_XN1) * p_X1N).sum(2)
    best_is_tied_XN = (low_XN + tie_XN) ** n - low_XN**n
    return best_is_tied_XN * p_XN / tie_XN


def bradley_terry_loss(score_XN: Tensor, reward_XN: Tensor, pair_XNN: Tensor) -> Tensor:
    """The population loss of a reward model over pairs (y, z) of answers.

        E over pairs of the cross-entropy between P(y > z) and sigmoid(s(y) - s(z))

    Preferences follow Bradley and Terry (1952): P(y > z) = sigmoid(R(y) - R(z)). pair_XNN is the
    law of the pairs, sum 1.
    """
    gap_XNN = differences(score_XN)
    prefer_XNN = differences(reward_XN).sigmoid()
    won_XNN = softplus(-gap_XNN) * prefer_XNN
    lost_XNN = softplus(gap_XNN) * (1 - prefer_XNN)
    return (pair_XNN * (won_XNN + lost_XNN)).sum()


def differences(of_XN: Tensor) -> Tensor:
    """of(y) - of(z) for every pair (y, z) of answers: [X, N, N]."""
    return of_XN[:, :, None] - of_XN[:, None, :]


def bradley_terry_scores(reward_XN: Tensor, p_XN: Tensor) -> Tensor:
    """The optimal scores under Bradley-Terry preferences, with mean 0 under p: [X, N].

    They are the reward up to a constant per prompt. The constant cannot be known from comparisons
    within a prompt, so scores of different prompts must be centred before they are mixed or
    clipped.
    """
    return reward_XN - (p_XN * reward_XN).sum(1, keepdim=True)
