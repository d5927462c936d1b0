"""Heads Q and V on the policy's last hidden state, and the language model that decodes with log pi
+ beta (Q - V).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laurel.core.errors import UsageError
from laurel.core.sample import Batch, Outputs
from laurel.fast.logprob import chunked_logprobs, upcast_logits
from laurel.model.narrow import autocast_for
from laurel.model.policy import Policy, trained_positions
from laurel.model.saving import (
    auto_causal,
    largest_entry,
    model_gap,
    rounding_note,
    saving_precision,
    verified_folder,
)
from laurel.model.written import Piece, head_name, pieces_of, write_model

HEADS = 2
SPREAD = 0.1
"""Of the first Q: two heads that started equal would stay equal, and the smaller be no caution."""


@dataclass
class Heads:
    """K heads Q (linear, without bias: hidden -> vocabulary), their slow copies, and V (linear:
    hidden -> 1), on the policy's last hidden state.

    `model`: a ModuleDict of `q_0`, `q_1`, `target_0`, `target_1`, `v`. target_update: how far the
    copies follow per optimiser step.
    decode_beta: how much of Q is put into the head of the folder that is saved; 0: none.
    """

    model: nn.ModuleDict
    target_update: float
    decode_beta: float
    computes = frozenset({"q_KNT", "logq_KNT", "target_q_NT", "value_NT"})
    shares_body = True

    def all(self, kind: str) -> list[Any]:
        """The heads of a kind (`q`, `target`, `v`), in order."""
        return [head for name, head in self.model.items() if name.partition("_")[0] == kind]

    def forward(
        self, batch: Batch, wanted: Collection[str], hidden_NLD: Tensor | None = None
    ) -> Outputs:
        """q_KNT, logq_KNT, target_q_NT and value_NT, as far as they are wanted, read at the
        position before each trained token.

        Never in half precision: bfloat16 knows a value to two or three digits.
        """
        assert hidden_NLD is not None, "the policy's hidden states must be given"
        rows, times, at = trained_positions(batch)
        shape_NT = batch.loss_mask_NT.shape
        # the state of a token is at the position before it
        ids_M = batch.ids_NL[rows, at + 1]
        with torch.autocast(hidden_NLD.device.type, enabled=False):
            found = self.read(upcast_logits(hidden_NLD[rows, at]), ids_M, wanted)

        def placed(x_M: Tensor) -> Tensor:
            zeros_NT = torch.zeros(shape_NT, device=x_M.device, dtype=x_M.dtype)
            return zeros_NT.index_put((rows, times), x_M)

        return Outputs(
            **{
                name: placed(x) if x.ndim == 1 else torch.stack([placed(x_M) for x_M in x])
                for name, x in found.items()
            }
        )

    def read(self, hidden_MD: Tensor, ids_M: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The outputs that are wanted, of states and the tokens chosen there: [M] each, of K heads
        [K, M].
        """
        ones_M = torch.ones_like(hidden_MD[:, 0])
        found: dict[str, Tensor] = {}
        if "q_KNT" in wanted:
            q = [token_output(q.weight, hidden_MD, ids_M) for q in self.all("q")]
            found["q_KNT"] = torch.stack(q)
        if "logq_KNT" in wanted:
            logq = [chunked_logprobs(q, hidden_MD, ids_M, ones_M).logp for q in self.all("q")]
            found["logq_KNT"] = torch.stack(logq)
        if "target_q_NT" in wanted:
            with torch.no_grad():
                slow = [token_output(q.weight, hidden_MD, ids_M) for q in self.all("target")]
                found["target_q_NT"] = torch.stack(slow).amin(0)
        if "value_NT" in wanted:
            found["value_NT"] = self.model["v"](hidden_MD)[:, 0]
        return found

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of Q and V; every name starts with `heads.`."""
        return {
            f"heads.{name}": p
            for name, p in self.model.named_parameters()
            if not name.startswith("target_")
        }

    def followers(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of the target networks."""
        return {
            f"heads.{name}": p
            for name, p in self.model.named_parameters()
            if name.startswith("target_")
        }

    @torch.no_grad()
    def follow(self) -> None:
        """target <- target + target_update (Q - target), after every optimiser step (Polyak)."""
        for slow, q in zip(self.all("target"), self.all("q"), strict=True):
            slow.weight.lerp_(q.weight, self.target_update)

    def save(
        self, policy: Policy, folder: str | Path, *, merge: bool = False, dtype: str | None = None
    ) -> list[str]:
        """Write a Hugging Face folder whose head is `folded`, and prove it: what it says is log pi
        + decode_beta (Q - V).

        Adapters are merged (they could not hold another head), and the head is no longer tied to
        the embeddings. decode_beta 0: the policy as it is.
        """
        if not self.decode_beta:
            return policy.save(folder, merge=merge, dtype=dtype)
        causal: Any = policy.causal
        live: torch.dtype = next(causal.parameters()).dtype
        kind = saving_precision(live, policy.origin, dtype)
        fix = "It should be log pi + beta (Q - V): save with decode_beta 0, or report this."
        with verified_folder(Path(folder), "model", fix) as (made, gaps):
            policy.tokenizer.save_pretrained(made)
            write_model(causal, made, kind, replaced=self.folded_head(causal))
            wanted = self.wanted(policy)
            ids = {"input_ids": policy.probe()}
            gaps.append(model_gap(made, auto_causal(), wanted, live, ids, shape=log_softmax))
        notes = rounding_note("log-probabilities", gaps[0][0], largest_entry(wanted), live, kind)
        if causal is policy.model or merge:
            return notes
        what = (
            "the whole model is saved, with the adapters merged in: they cannot hold Q in the head"
        )
        return [what, *notes]

    def folded_head(self, causal: Any) -> dict[str, Piece]:
        """The head with Q inside, by its name among the model's weights, a few rows at a time."""
        name = head_name(causal)
        plain, q_KVD = pieces_of(causal)[name], [q.weight.detach() for q in self.all("q")]

        def rows(start: int, stop: int) -> Tensor:
            some_KvD = [q_VD[start:stop] for q_VD in q_KVD]
            return fold_q_into_head(plain.rows(start, stop), some_KvD, self.decode_beta)

        return {name: Piece(plain.shape, plain.dtype, rows)}

    @torch.no_grad()
    def wanted(self, policy: Policy) -> Tensor:
        """The log-probabilities of the probe by log pi + decode_beta (Q - V), float64."""
        was = policy.model.training
        policy.model.eval()
        causal: Any = policy.causal
        ids = policy.probe()
        with autocast_for(causal):
            hidden = getattr(causal, causal.base_model_prefix)(ids).last_hidden_state
            logits = causal(ids).logits
        found = logits.double().log_softmax(-1) + self.decode_beta * self.advantage(hidden).double()
        policy.model.train(was)
        return found.log_softmax(-1)

    def advantage(self, hidden: Tensor) -> Tensor:
        """Q(s, .) - V(s), Q the mean of the heads: hidden states [..., D] -> [..., V]."""
        hidden = upcast_logits(hidden)
        q = torch.stack([q(hidden) for q in self.all("q")]).mean(0)
        return q - self.model["v"](hidden)


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities of logits [..., V]."""
    return logits.log_softmax(-1)


def token_output(weight_VD: Tensor, hidden_MD: Tensor, ids_M: Tensor) -> Tensor:
    """What a linear head says of one token of each state: [V, D], [M, D], [M] -> [M], without the
    rest of the vocabulary.
    """
    return (weight_VD[ids_M] * hidden_MD).sum(1)


def fold_q_into_head(weight_VD: Tensor, q_KVD: Sequence[Tensor], decode_beta: float) -> Tensor:
    """W + decode_beta mean_k W_k: the head whose softmax is that of log pi + decode_beta (Q - V),
    [V, D].

    log pi = W h - a number of the state, Q = mean_k W_k h, V a number of the state: numbers of the
    state drop out of a softmax.
    """
    return weight_VD + decode_beta * torch.stack(list(q_KVD)).mean(0)


def new_heads(policy: Policy, *, target_update: float, decode_beta: float, seed: int = 0) -> Heads:
    """Heads for a policy: V says 0, Q small numbers from `seed` (SPREAD for a hidden state of unit
    entries), the copies are equal to Q.

    A model whose logits are more than a linear head of the last hidden state (soft-capped, scaled)
    cannot be saved with Q inside: refused unless decode_beta is 0.
    """
    check_folds(policy, decode_beta)
    size, width = policy.causal.get_output_embeddings().weight.shape
    live = policy.causal.get_output_embeddings().weight.dtype
    how: dict[str, Any] = {
        "device": policy.device,
        "dtype": torch.promote_types(live, torch.float32),
    }
    noise = torch.Generator().manual_seed(seed)
    made: dict[str, nn.Module] = {}
    for k in range(HEADS):
        q = nn.Linear(width, size, bias=False, **how)
        target = nn.Linear(width, size, bias=False, **how).requires_grad_(False)
        with torch.no_grad():
            q.weight.copy_(torch.randn(size, width, generator=noise) * SPREAD * width**-0.5)
            target.weight.copy_(q.weight)
        made[f"q_{k}"], made[f"target_{k}"] = q, target
    v = nn.Linear(width, 1, **how)
    nn.init.zeros_(v.weight)
    nn.init.zeros_(v.bias)
    made["v"] = v
    return Heads(nn.ModuleDict(made), target_update, decode_beta)


def check_folds(policy: Policy, decode_beta: float) -> None:
    """UsageError where Q is to be put into a head that is not linear in the last hidden state."""
    head = policy.causal.get_output_embeddings()
    capped = getattr(policy.causal.config, "final_logit_softcapping", None) is not None
    if decode_beta and (policy.whole_logits or capped or not isinstance(head, nn.Linear)):
        raise UsageError(
            "this model's logits are not a linear head of its last hidden state, so Q cannot be"
            " folded into it.",
            where="decode_beta",
            fix=(
                "Set decode_beta=0 to save the policy without Q, or use a model without soft-capped"
                " or scaled logits."
            ),
        )
