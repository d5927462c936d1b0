"""A decoder over static buffers, for any device: on CUDA a step is one graph, and the host is not asked until many tokens later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from laurel.policy.adapters import plain_lora
from laurel.policy.compact import STATIC_ROPES, listened, ropes
from laurel.policy.model import Policy
from laurel.policy.packed import Layout, arrange, capped, encode, window_of
from laurel.policy.precision import USUAL, WORST, slack
from laurel.policy.room import device_memory
from laurel.policy.sampler import draw
from laurel.policy.twin import Twin

BOTH = 3.0
"""As many times the usual distance may lie between its logits and the model's own: both round, and tiny random models most of all."""
HELD = 8
"""Memory stays between two calls where it is less than the device's, by so many; else each call makes it, and its graphs, anew."""


class How(NamedTuple):
    """How tokens are drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Buffers:
    """What rows in flight are, each at its place: keys and values [layers, rows, reach, K, h], and what they say.

    token [R]: said last. start [R]: length of the prompt. length [R]: tokens said. limit [R]: tokens at most. open [R]: does it still
    speak? uniform [R, T], out_ids and out_logp [R, T + 1]: the last column is where closed rows write to.
    """

    def __init__(self, layers: int, heads: int, width: int, rows: int, reach: int, longest: int, dtype: torch.dtype, device: Any) -> None:
        def zeros(*shape: int, kind: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        self.rows, self.reach, self.longest = rows, reach, longest
        self.keys = zeros(layers, rows, reach, heads, width, kind=dtype)
        self.values = torch.zeros_like(self.keys)
        self.token, self.length, self.limit = zeros(rows), zeros(rows), zeros(rows)
        self.start, self.open = torch.ones_like(self.token), zeros(rows, kind=torch.bool)
        self.uniform, self.out_ids = zeros(rows, longest, kind=torch.float64), zeros(rows, longest + 1)
        self.out_logp = zeros(rows, longest + 1, kind=torch.float64 if dtype == torch.float64 else torch.float32)
        self.every, self.points = torch.arange(rows, device=device), torch.arange(reach, device=device)

    def move(self, source: Tensor, target: Tensor, reach: int) -> None:
        """Rows go to other places, with the first `reach` of their keys and values."""
        for said in (self.token, self.start, self.length, self.limit, self.open, self.uniform, self.out_ids, self.out_logp):
            said[target] = said[source]
        for layer in (*self.keys, *self.values):
            layer[target, :reach] = layer[source, :reach]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class Reading(Layout):
    """Prompts, packed: their keys and values go to all rows that go on from them.

    source_M, row_M, at_M: token `source` of the packed ones is at `at` in row `row`.
    """

    buffers: Buffers
    source_M: Tensor
    row_M: Tensor
    at_M: Tensor

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.buffers.keys[own.layer_idx], self.buffers.values[own.layer_idx]
        q, k, v = (x.to(keys.dtype) for x in (q, k, v))
        keys[self.row_M, self.at_M] = k[self.source_M]
        values[self.row_M, self.at_M] = v[self.source_M]
        return super().read(own, q, k, v)


@dataclass(frozen=True)
class Step:
    """One token of each of the first B rows: it is written to its place, and reads all before it, of the first `reach` places."""

    ids_M: Tensor
    position_M: Tensor
    buffers: Buffers
    reach: int
    masks: dict[Any, Tensor] = field(default_factory=dict)

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads that share keys are the queries of one row of them: [B, K, H / K, h] against [B, K, reach, h]."""
        every, rows = self.buffers, len(self.ids_M)
        keys, values = every.keys[own.layer_idx], every.values[own.layer_idx]
        keys[every.every[:rows], self.position_M] = k.to(keys.dtype)
        values[every.every[:rows], self.position_M] = v.to(keys.dtype)
        keys, values = (x[:rows, : self.reach].transpose(1, 2) for x in (keys, values))
        q_BKRh = q.to(keys.dtype).unflatten(1, (keys.shape[1], -1))
        cap, window = getattr(own, "attn_logit_softcapping", None), window_of(own)
        if cap is not None:
            return capped(q_BKRh, keys, values, self.mask(window), own.scaling, cap, 0.0).flatten(1)
        return F.scaled_dot_product_attention(q_BKRh, keys, values, self.added(window, keys.dtype), scale=own.scaling).flatten(1)

    def mask(self, window: int | None) -> Tensor:
        """Which places a row's token sees: [B, 1, 1, reach]. Made once a step."""
        if window not in self.masks:
            behind = self.position_M[:, None] - self.buffers.points[: self.reach]
            seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
            self.masks[window] = seen[:, None, None]
        return self.masks[window]

    def added(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The same as a number that is added to the score: 0 or minus infinity."""
        if (window, dtype) not in self.masks:
            seen = self.mask(window)
            self.masks[window, dtype] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)
        return self.masks[window, dtype]


class Static:
    """The decoder of a policy. `refresh` before use; `ready` makes room; `prefill`, then `advance` token by token."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.twin, self.buffers = policy, Twin(policy), None
        self.graphs, self.places, self.pool = dict[Any, Any](), (), None
        self.graphed = policy.device.type == "cuda"
        self.eos = torch.tensor(sorted(policy.eos_ids), dtype=torch.long, device=policy.device)
        first = getattr(policy.causal, policy.causal.base_model_prefix).layers[0].self_attn
        self.config, self.width = policy.causal.config, first.head_dim

    def refresh(self) -> None:
        """The weights as they are now. Graphs know addresses: they go where one has changed."""
        self.twin.refresh()
        self.eos = self.eos if self.eos.tolist() == sorted(self.policy.eos_ids) else torch.tensor(sorted(self.policy.eos_ids)).to(self.eos)
        places = (*self.twin.places, self.eos.data_ptr())
        if places != self.places:
            self.graphs.clear()
        self.places = places

    def a_row(self, reach: int, longest: int) -> int:
        """Bytes that a row in flight takes: keys and values, what it says, and its logits while one of it is drawn."""
        kept = 2 * self.config.num_hidden_layers * self.config.num_key_value_heads * self.width * self.dtype.itemsize
        return kept * reach + 20 * longest + 16 * self.config.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of keys and values."""
        own = getattr(self.policy.causal, self.policy.causal.base_model_prefix).layers[0].self_attn.o_proj
        return self.twin.precision(getattr(own, "base_layer", own).weight)

    def ready(self, rows: int, reach: int, longest: int) -> Buffers:
        """Buffers of at least that size. Larger ones than before take their place, and the graphs go."""
        found = self.buffers
        if found is None or found.rows < rows or found.reach < reach or found.longest < longest:
            self.release()
            shape = self.config.num_hidden_layers, self.config.num_key_value_heads, self.width
            self.buffers = Buffers(*shape, rows, reach, longest, self.dtype, self.policy.device)
        self.buffers.open.zero_()
        return self.buffers

    def release(self) -> None:
        """Give the memory back."""
        self.graphs.clear()
        self.buffers = None

    def rest(self) -> None:
        """After use: what is more than a part of the device's memory is given back."""
        memory = device_memory(self.policy.device)
        held = self.twin.bytes + (self.buffers.bytes if self.buffers else 0)
        if memory is not None and held * HELD > memory[1]:
            self.release()
            self.twin.release()

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        """Read each prompt once, for the rows that go on from it: logits [P, V] after its last token."""
        longest, device = max(map(len, prompts)), self.policy.device
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        flat = arrange(ids, torch.arange(longest) < lengths[:, None])
        first = lengths.cumsum(0) - lengths
        each = [(row, int(start), len(prompt)) for row_s, start, prompt in zip(rows, first, prompts, strict=True) for row in row_s]
        source = torch.cat([torch.arange(start, start + count) for _, start, count in each])
        row_M = torch.tensor([row for row, _, _ in each]).repeat_interleave(torch.tensor([count for _, _, count in each]))
        parts = (x.to(device) for x in (flat.ids_M, flat.position_M, flat.place_NL, flat.back_M))
        where = (x.to(device) for x in (source, row_M, flat.position_M[source]))
        calls = tuple(type(one)(one.query_BT.to(device), one.key_BS.to(device), one.at_BT.to(device)) for one in flat.calls)
        return self.read(Reading(*parts, calls, self.buffers, *where), (lengths.cumsum(0) - 1).to(device))

    def forward(self, rows: int, reach: int) -> Tensor:
        """Logits [rows, V] after the token that each of the first rows has said last, with keys of the first `reach` places."""
        all_of = self.buffers
        position = all_of.start[:rows] + all_of.length[:rows] - 1
        return self.read(Step(all_of.token[:rows], position, all_of, reach))

    def read(self, layout: Any, last: Tensor | None = None) -> Tensor:
        """Logits after the packed tokens, or some of them. Under autocast for what is not of the twin: an embedding that is widened."""
        with self.policy.autocast():
            hidden = encode(self.twin.body, layout)
            return self.twin.logits(hidden if last is None else hidden[last])

    def note(self, row_B: Tensor, logits: Tensor, how: How) -> None:
        """Draw a token for rows that still speak, and note it. Who says an end token, or has no more to say, is closed."""
        all_of = self.buffers
        open_B, length_B = all_of.open[row_B], all_of.length[row_B]
        point_B = all_of.uniform[row_B, length_B.clamp(max=all_of.longest - 1)]
        ids, logp = draw(logits, point_B, how.temperature, top_k=how.top_k, top_p=how.top_p)
        into_B = torch.where(open_B, length_B, all_of.longest)
        all_of.out_ids[row_B, into_B], all_of.out_logp[row_B, into_B] = ids, logp.to(all_of.out_logp.dtype)
        all_of.token[row_B] = torch.where(open_B, ids, all_of.token[row_B])
        length_B = length_B + open_B
        all_of.length[row_B] = length_B
        ended_B = (ids[:, None] == self.eos).any(1) | (length_B >= all_of.limit[row_B])
        all_of.open[row_B] = open_B & ~ended_B

    def step(self, rows: int, reach: int, how: How) -> None:
        """One token more for the first `rows` places. The same calls on the same memory each time: a graph of it can be replayed."""
        self.note(self.buffers.every[:rows], self.forward(rows, reach), how)

    @torch.no_grad()
    def advance(self, rows: int, reach: int, how: How) -> None:
        """`step`; on CUDA the first of a kind as it is, all others as a graph of it."""
        key = (rows, reach, how)
        if key in self.graphs:
            return self.graphs[key].replay()
        self.step(rows, reach, how)
        if self.graphed:
            self.capture(key)

    def capture(self, key: tuple[int, int, How]) -> None:
        """A graph of a step. What cannot be captured is called step by step from then on, and that is said."""
        if not self.graphs:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.step(*key)
        except RuntimeError as error:
            self.graphed = False
            line = str(error).splitlines()[0]
            logging.getLogger(__name__).warning("sampling goes on without CUDA graphs, slower: %s", line)
        else:
            self.graphs[key] = graph

    @torch.no_grad()
    def check(self) -> str:
        """Why not to use it, "" where a prefill of two lengths and three single tokens have the logits of the Hugging Face forward pass."""
        size = self.config.vocab_size
        ids_NL = (torch.arange(16).view(2, 8) * max(size // 17, 1) % size).to(self.policy.device)
        all_of, starts, every = self.ready(2, 16, 4), torch.tensor([5, 2]), torch.arange(2)
        found = [self.prefill([ids_NL[0, :5].tolist(), ids_NL[1, :2].tolist()], [[0], [1]]).double()]
        all_of.start.copy_(starts)
        for t in range(3):
            all_of.token.copy_(ids_NL[every, starts + t])
            all_of.length.fill_(t + 1)
            found.append(self.forward(2, 16).double())
        self.release()
        with self.policy.autocast():
            logits = self.policy.causal(ids_NL, use_cache=False).logits.double()
        wanted = torch.stack([logits[n, int(s) - 1 : int(s) + 3] for n, s in enumerate(starts)], 1)
        gap, unit = (torch.stack(found) - wanted).abs().flatten().sort()[0], slack(self.dtype, float(wanted.abs().max()))
        usual, worst = float(gap[int(0.99 * (len(gap) - 1))]), float(gap[-1])
        if usual < BOTH * USUAL * unit and worst < WORST * unit:
            return ""
        explained = f"{BOTH * USUAL * unit:.2g} and {WORST * unit:.2g}"
        return f"its logits would differ by {usual:.2g} (99 of 100) and {worst:.2g} (the worst), where rounding explains {explained}"


def static_obstacle(policy: Policy) -> str:
    """Why static buffers are not for a policy that `packs`, "" if they are."""
    if policy.device.type not in ("cpu", "cuda"):
        return f"the device is {policy.device.type}"
    body = getattr(policy.causal, policy.causal.base_model_prefix)
    strange = sorted({kind for _, _, kind in ropes(body).values()}.difference(STATIC_ROPES))
    if strange:
        return f"rotary embedding {strange[0]}"
    return "" if plain_lora(policy.model) else "adapters other than plain LoRA"


def static_because(policy: Policy) -> str:
    """Why a policy is not sampled with static buffers, "" where it can be."""
    if not policy.packs:
        return "a family whose pass laurel does not write out"
    if static_of(policy) is not None:
        return ""
    return static_obstacle(policy) or "its logits would differ"


@torch.no_grad()
def static_of(policy: Policy) -> Static | None:
    """The policy's static decoder with its weights as they are now, or None: made, and checked against the model, once per policy."""
    if not policy.packs or listened(policy):
        return None
    made = vars(policy).get("static", False)
    if made is False or (made and made.policy is not policy):
        made, why = None, static_obstacle(policy)
        if not why:
            made = Static(policy)
            made.refresh()
            why = made.check()
        policy.static = made = None if why else made
    elif made:
        made.refresh()
    return made
