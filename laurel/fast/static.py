"""A decoder over static buffers, for any device: on CUDA a step is one graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from laurel.fast.decode import STATIC_ROPES, draw, listened, ropes
from laurel.fast.logprob import USUAL, WORST, slack
from laurel.fast.lora import plain_lora
from laurel.fast.packed import Attention, Layout, arrange, capped, encode, window_of
from laurel.fast.protocol import LanguageModel
from laurel.fast.room import device_memory
from laurel.fast.twin import Twin

BOTH = 3.0
"""So many usual distances may lie between its logits and the model's own: both round.

Tiny random models round most of all.
"""
HELD = 8
"""Memory stays between two calls where the device has so many times as much.

Else each call makes it, and its graphs, anew.
"""


class How(NamedTuple):
    """How tokens are drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Buffers:
    """What rows in flight are, each at its place, and what they say.

    keys, values [layers, R, reach, K, h]. token [R]: said last. start [R]: length of the prompt.
    length [R]: tokens said. limit [R]: tokens at most. open [R]: does it still speak?
    uniform [R, T]; out_ids, out_logp [R, T + 1], the last column for what closed rows say.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rows: int,
        reach: int,
        longest: int,
        dtype: torch.dtype,
        device: Any,
    ) -> None:
        def zeros(*sizes: int, kind: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(sizes, dtype=kind, device=device)

        layers, heads, width = shape
        self.rows, self.reach, self.longest = rows, reach, longest
        self.keys = zeros(layers, rows, reach, heads, width, kind=dtype)
        self.values = torch.zeros_like(self.keys)
        self.token, self.length, self.limit = zeros(rows), zeros(rows), zeros(rows)
        self.start, self.open = torch.ones_like(self.token), zeros(rows, kind=torch.bool)
        self.uniform = zeros(rows, longest, kind=torch.float64)
        self.out_ids = zeros(rows, longest + 1)
        fine = torch.promote_types(dtype, torch.float32)
        self.out_logp = zeros(rows, longest + 1, kind=fine)
        self.every = torch.arange(rows, device=device)
        self.points = torch.arange(reach, device=device)

    def move(self, source: Tensor, target: Tensor, reach: int) -> None:
        """Rows go to other places, with the first `reach` of their keys and values."""
        said = (self.token, self.start, self.length, self.limit, self.open, self.uniform)
        for one in (*said, self.out_ids, self.out_logp):
            one[target] = one[source]
        for layer in (*self.keys, *self.values):
            layer[target, :reach] = layer[source, :reach]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class Reading(Layout):
    """Prompts, packed: their keys and values go to all rows that go on from them.

    places: token `source` of the packed ones is in row `row` at `at`, three tensors.
    """

    buffers: Buffers
    places: tuple[Tensor, ...]

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.buffers.keys[own.layer_idx], self.buffers.values[own.layer_idx]
        q, k, v = (x.to(keys.dtype) for x in (q, k, v))
        source, row, at = self.places
        keys[row, at], values[row, at] = k[source], v[source]
        return super().read(own, q, k, v)


@dataclass(frozen=True)
class Step:
    """One token of each of the first B rows: written to its place, it reads those before it."""

    ids_M: Tensor
    position_M: Tensor
    buffers: Buffers
    reach: int
    masks: dict[Any, Tensor] = field(default_factory=dict)

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads that share keys are one row of queries: [B, K, H / K, h] on [B, K, reach, h]."""
        rows, i = len(self.ids_M), own.layer_idx
        keys, values = self.buffers.keys[i], self.buffers.values[i]
        row_B = self.buffers.every[:rows]
        keys[row_B, self.position_M] = k.to(keys.dtype)
        values[row_B, self.position_M] = v.to(keys.dtype)
        keys, values = (x[:rows, : self.reach].transpose(1, 2) for x in (keys, values))
        q = q.to(keys.dtype).unflatten(1, (keys.shape[1], -1))
        cap, window = getattr(own, "attn_logit_softcapping", None), window_of(own)
        if cap is not None:
            said = capped(q, keys, values, self.mask(window), own.scaling, cap, 0.0)
        else:
            mask = self.added(window, keys.dtype)
            said = F.scaled_dot_product_attention(q, keys, values, mask, scale=own.scaling)
        return said.flatten(1)

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
            nothing = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[window, dtype] = nothing.masked_fill(~seen, -torch.inf)
        return self.masks[window, dtype]


class Static:
    """The decoder of a policy: `refresh`, `ready` for room, `prefill`, then `advance` by tokens."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy, self.twin, self.buffers = policy, Twin(policy), None
        self.graphs, self.places, self.pool = dict[Any, Any](), (), None
        self.graphed = policy.device.type == "cuda"
        ends = (
            sorted(policy.eos_ids) if policy.tokenizer else []
        )  # asked for shapes alone, it has none
        self.eos = torch.tensor(ends, dtype=torch.long, device=policy.device)
        self.config, own = policy.causal.config, attention_of(policy)
        self.shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, own.head_dim)

    def refresh(self) -> None:
        """The weights as they are now. Graphs know addresses: they go where one has changed."""
        self.twin.refresh()
        if self.eos.tolist() != (ends := sorted(self.policy.eos_ids)):
            self.eos = torch.tensor(ends, dtype=torch.long, device=self.eos.device)
        places = (*self.twin.places, self.eos.data_ptr())
        if places != self.places:
            self.graphs.clear()
        self.places = places

    def a_row(self, reach: int, longest: int) -> int:
        """Bytes that a row in flight takes: keys, values, what it says, logits on the way."""
        layers, heads, width = self.shape
        a_token = 2 * layers * heads * width * self.dtype.itemsize
        return a_token * reach + 20 * longest + 16 * self.config.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of keys and values."""
        own = attention_of(self.policy).o_proj
        return self.twin.precision(getattr(own, "base_layer", own).weight)

    def ready(self, rows: int, reach: int, longest: int) -> Buffers:
        """Buffers of at least that size. Where larger ones take their place, graphs go, too."""
        found, asked = self.buffers, (rows, reach, longest)
        there = (found.rows, found.reach, found.longest) if found else (0, 0, 0)
        if found is None or any(less < more for less, more in zip(there, asked, strict=True)):
            self.release()
            found = Buffers(self.shape, *asked, self.dtype, self.policy.device)
        self.buffers = found
        found.open.zero_()
        return found

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
        """Read each prompt once, for the rows that go on from it: logits [P, V] after it."""
        longest, device = max(map(len, prompts)), self.policy.device
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        flat = arrange(ids, torch.arange(longest) < lengths[:, None])
        ends = lengths.cumsum(0)
        counts = torch.tensor([len(part) for part in rows])
        whose = torch.arange(len(prompts)).repeat_interleave(counts)  # the prompt of each row
        source = torch.cat([torch.arange(ends[n] - lengths[n], ends[n]) for n in whose])
        row_M = torch.tensor([row for part in rows for row in part])
        row_M = row_M.repeat_interleave(lengths[whose])
        where = (source, row_M, flat.position_M[source])
        into = [x.to(device) for x in where]
        layout = Reading(**parts_of(flat, device), buffers=self.buffers, places=tuple(into))
        return self.read(layout, (ends - 1).to(device))

    def forward(self, rows: int, reach: int) -> Tensor:
        """Logits [rows, V] after what each of the first rows has said last.

        reach: so many keys of a row are read.
        """
        all_of = self.buffers
        position = all_of.start[:rows] + all_of.length[:rows] - 1
        return self.read(Step(all_of.token[:rows], position, all_of, reach))

    def read(self, layout: Any, last: Tensor | None = None) -> Tensor:
        """Logits after the packed tokens, or some of them.

        Under autocast for what is not the twin's own: an embedding may look for it.
        """
        with self.policy.autocast():
            hidden = encode(self.twin.body, layout)
            return self.twin.logits(hidden if last is None else hidden[last])

    def note(self, row_B: Tensor, logits: Tensor, how: How) -> None:
        """Draw a token for rows that still speak, and note it.

        Who says an end token, or as much as it may, is closed.
        """
        all_of = self.buffers
        open_B, length_B = all_of.open[row_B], all_of.length[row_B]
        point_B = all_of.uniform[row_B, length_B.clamp(max=all_of.longest - 1)]
        ids, logp = draw(logits, point_B, how.temperature, top_k=how.top_k, top_p=how.top_p)
        into_B = torch.where(open_B, length_B, all_of.longest)
        all_of.out_ids[row_B, into_B] = ids
        all_of.out_logp[row_B, into_B] = logp.to(all_of.out_logp.dtype)
        all_of.token[row_B] = torch.where(open_B, ids, all_of.token[row_B])
        length_B = length_B + open_B
        all_of.length[row_B] = length_B
        ended_B = (ids[:, None] == self.eos).any(1) | (length_B >= all_of.limit[row_B])
        all_of.open[row_B] = open_B & ~ended_B

    def step(self, rows: int, reach: int, how: How) -> None:
        """One token more for the first `rows` places.

        The same calls on the same memory each time: a graph of it can be replayed.
        """
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
        """A graph of a step. Where it cannot be made, steps are called one by one: that is said."""
        if not self.graphs:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.step(*key)
        except RuntimeError as error:
            self.graphed = False
            line = str(error).splitlines()[0]
            log = logging.getLogger(__name__)
            log.warning("sampling goes on without CUDA graphs, slower: %s", line)
        else:
            self.graphs[key] = graph

    @torch.no_grad()
    def check(self) -> str:
        """Why not to use it, "" where its logits are those of the Hugging Face forward pass.

        Tried are a prefill of two lengths, and three single tokens.
        """
        size, starts, every = self.config.vocab_size, torch.tensor([5, 2]), torch.arange(2)
        ids_NL = (torch.arange(16).view(2, 8) * max(size // 17, 1) % size).to(self.policy.device)
        all_of = self.ready(2, 16, 4)
        prompts = [ids_NL[0, :5].tolist(), ids_NL[1, :2].tolist()]
        found = [self.prefill(prompts, [[0], [1]]).double()]
        all_of.start[:2].copy_(starts)
        for t in range(3):
            all_of.token[:2].copy_(ids_NL[every, starts + t])
            all_of.length[:2].fill_(t + 1)
            found.append(self.forward(2, 16).double())
        self.release()
        with self.policy.autocast():
            logits = self.policy.causal(ids_NL, use_cache=False).logits.double()
        wanted = torch.stack([logits[n, int(s) - 1 : int(s) + 3] for n, s in enumerate(starts)], 1)
        gap = (torch.stack(found) - wanted).abs().flatten().sort()[0]
        unit = slack(self.dtype, float(wanted.abs().max()))
        usual, worst = float(gap[int(0.99 * (len(gap) - 1))]), float(gap[-1])
        if usual < BOTH * USUAL * unit and worst < WORST * unit:
            return ""
        return (
            f"its logits would differ by {usual:.2g} (99 of 100) and {worst:.2g} (the worst), "
            f"where rounding explains {BOTH * USUAL * unit:.2g} and {WORST * unit:.2g}"
        )


def parts_of(layout: Layout, device: torch.device) -> dict[str, Any]:
    """All that a layout holds, by name, on a device."""

    def there(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(there(one) for one in part)
        if isinstance(part, Attention):
            return replace(
                part, **{one.name: there(getattr(part, one.name)) for one in fields(part)}
            )
        return part.to(device) if isinstance(part, Tensor) else part

    return {one.name: there(getattr(layout, one.name)) for one in fields(layout)}


def attention_of(policy: LanguageModel) -> Any:
    """The attention of the first layer."""
    return getattr(policy.causal, policy.causal.base_model_prefix).layers[0].self_attn


def static_obstacle(policy: LanguageModel) -> str:
    """Why static buffers are not for a policy that `packs`, "" if they are."""
    if policy.device.type not in ("cpu", "cuda", "meta"):  # meta: what it would take is asked
        return f"the device is {policy.device.type}"
    body = getattr(policy.causal, policy.causal.base_model_prefix)
    strange = sorted({kind for _, _, kind in ropes(body).values()}.difference(STATIC_ROPES))
    if strange:
        return f"rotary embedding {strange[0]}"
    return "" if plain_lora(policy.model) else "adapters other than plain LoRA"


def static_because(policy: LanguageModel) -> str:
    """Why a policy is not sampled with static buffers, "" where it can be."""
    if not policy.packs:
        return "a family whose pass laurel does not write out"
    if static_of(policy) is not None:
        return ""
    return static_obstacle(policy) or "its logits would differ"


@torch.no_grad()
def static_of(policy: LanguageModel) -> Static | None:
    """The policy's static decoder with its weights as they are now; None where it cannot be.

    Made, and checked against the model, once per policy.
    """
    if not policy.packs or listened(policy):
        return None
    made = policy.decoders.get("static", False)
    if made is False or (made and made.policy is not policy):
        made, why = None, static_obstacle(policy)
        if not why:
            made = Static(policy)
            made.refresh()
            why = made.check()
        policy.decoders["static"] = made = None if why else made
    elif made:
        made.refresh()
    return made
