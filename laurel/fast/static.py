"""A decoder over static buffers, for any device: on CUDA a step is one graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from laurel.core.tensors import ints
from laurel.fast.autograd import unflatten
from laurel.fast.decode import (
    PROBE_STARTS,
    STATIC_ROPES,
    has_hooks,
    probe_ids,
    probe_logits,
    rotary_parameters,
    sample_tokens,
)
from laurel.fast.logprob import USUAL, WORST, rounding_tolerance
from laurel.fast.lora import plain_lora
from laurel.fast.packed import (
    Attention,
    Layout,
    arrange_rows,
    encode,
    softcapped_attention,
    window_of,
)
from laurel.fast.policy_protocol import LanguageModel
from laurel.fast.room import device_memory
from laurel.fast.twin import SamplingCopy

BOTH = 3.0
"""So many usual distances may lie between its logits and the model's own: both round.

Tiny random models round most of all.
"""
KEEP_BELOW = 8
"""Memory stays between two calls where it is at most one part in so many of the device's.

Else each call makes it, and its graphs, anew.
"""


class SamplingParameters(NamedTuple):
    """How tokens are drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class RowBuffers:
    """The state of R rows in flight, each at its place.

    keys, values [layers, R, reach, K, h]. token [R]: the last one. start [R]: length of the prompt.
    length [R]: tokens drawn. limit [R]: tokens at most. open [R]: does the row go on? uniform [R,
    T]; out_ids, out_logp [R, T + 1], the last column for what is drawn for rows that have ended.
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
        columns = (self.token, self.start, self.length, self.limit, self.open, self.uniform)
        for column in (*columns, self.out_ids, self.out_logp):
            column[target] = column[source]
        # a layer at a time: the copy on the way is of one layer only
        for layer in (*self.keys, *self.values):
            layer[target, :reach] = layer[source, :reach]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values() if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class PackedPrompts(Layout):
    """Prompts, packed: their keys and values go to all rows that go on from them.

    places: token `source` of the packed ones is in row `row` at `at`, three tensors.
    """

    buffers: RowBuffers
    places: tuple[Tensor, ...]

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = self.buffers.keys[own.layer_idx]
        values = self.buffers.values[own.layer_idx]
        q, k, v = q.to(keys.dtype), k.to(keys.dtype), v.to(keys.dtype)
        source, row, at = self.places
        keys[row, at] = k[source]
        values[row, at] = v[source]
        return super().read(own, q, k, v)


@dataclass(frozen=True)
class DecodeStep:
    """One token of each of the first B rows: written to its place, it reads those before it."""

    ids_M: Tensor
    position_M: Tensor
    buffers: RowBuffers
    reach: int
    masks: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def read(self, own: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads that share keys are one row of queries: [B, K, H / K, h] on [B, K, reach, h]."""
        rows = len(self.ids_M)
        row_B = self.buffers.every[:rows]
        keys = self.buffers.keys[own.layer_idx]
        values = self.buffers.values[own.layer_idx]
        keys[row_B, self.position_M] = k.to(keys.dtype)
        values[row_B, self.position_M] = v.to(keys.dtype)
        # [R, reach, K, h] -> [B, K, reach, h]
        keys = keys[:rows, : self.reach].transpose(1, 2)
        values = values[:rows, : self.reach].transpose(1, 2)
        # [B, H, h] -> [B, K, H / K, h]
        q = unflatten(q.to(keys.dtype), 1, (keys.shape[1], -1))
        cap = getattr(own, "attn_logit_softcapping", None)
        window = window_of(own)
        if cap is not None:
            out = softcapped_attention(q, keys, values, self.mask(window), own.scaling, cap, 0.0)
        else:
            mask = self.added(window, keys.dtype)
            out = F.scaled_dot_product_attention(q, keys, values, mask, scale=own.scaling)
        return out.flatten(1)

    def mask(self, window: int | None) -> Tensor:
        """Which places a row's token sees: [B, 1, 1, reach]. Made once a step."""
        if window not in self.masks:
            # how far each key is behind the query; what was never written to lies before it
            behind = self.position_M[:, None] - self.buffers.points[: self.reach]
            visible = behind >= 0
            if window is not None:
                visible = visible & (behind < window)
            self.masks[window] = visible[:, None, None]
        return self.masks[window]

    def added(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The same as a number that is added to the score: 0 or minus infinity."""
        if (window, dtype) not in self.masks:
            visible = self.mask(window)
            nothing = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self.masks[window, dtype] = nothing.masked_fill(~visible, -torch.inf)
        return self.masks[window, dtype]


class StaticDecoder:
    """The decoder of a policy: `refresh`, `ready` for room, `prefill`, then `advance` by tokens."""

    def __init__(self, policy: LanguageModel) -> None:
        self.policy, self.twin = policy, SamplingCopy(policy)
        self.made: RowBuffers | None = None
        self.graphs = dict[tuple[int, int, SamplingParameters], Any]()
        self.addresses: tuple[int, ...] = ()
        self.pool: Any = None
        self.graphed = policy.device.type == "cuda"
        # where memory is foreseen from shapes alone there is no tokenizer
        ends = sorted(policy.eos_ids) if policy.tokenizer else []
        self.eos = torch.tensor(ends, dtype=torch.long, device=policy.device)
        self.config, own = policy.causal.config, attention_of(policy)
        self.shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, own.head_dim)

    @property
    def buffers(self) -> RowBuffers:
        """The memory that `ready` made."""
        assert self.made is not None, "ready() comes first"
        return self.made

    def refresh(self) -> None:
        """The weights as they are now. Graphs know addresses: they go where one has changed."""
        self.twin.refresh()
        ends = sorted(self.policy.eos_ids)
        if ints(self.eos) != ends:
            self.eos = torch.tensor(ends, dtype=torch.long, device=self.eos.device)
        addresses = (*self.twin.places, self.eos.data_ptr())
        if addresses != self.addresses:
            self.graphs.clear()
        self.addresses = addresses

    def a_row(self, reach: int, longest: int) -> int:
        """Bytes that a row in flight takes: keys, values, uniform numbers and results, logits."""
        layers, heads, width = self.shape
        a_token = 2 * layers * heads * width * self.dtype.itemsize
        # of each token a number, an id and a log-probability; of logits copies in float32
        return a_token * reach + 20 * longest + 16 * self.config.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of keys and values."""
        own = attention_of(self.policy).o_proj
        return self.twin.precision(getattr(own, "base_layer", own).weight)

    def ready(self, rows: int, reach: int, longest: int) -> RowBuffers:
        """Buffers of at least that size. Where larger ones take their place, graphs go, too."""
        asked, found = (rows, reach, longest), self.made
        there = (found.rows, found.reach, found.longest) if found else (0, 0, 0)
        if found is None or any(less < more for less, more in zip(there, asked, strict=True)):
            self.release()
            found = RowBuffers(self.shape, *asked, self.dtype, self.policy.device)
        self.made = found
        found.open.zero_()
        return found

    def release(self) -> None:
        """Give the memory back."""
        self.graphs.clear()
        self.made = None

    def release_if_large(self) -> None:
        """After use: what is more than a part of the device's memory is given back."""
        memory = device_memory(self.policy.device)
        taken = self.twin.bytes + (self.made.bytes if self.made else 0)
        if memory is not None and taken * KEEP_BELOW > memory[1]:
            self.release()
            self.twin.release()

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Tensor:
        """Read each prompt once, for the rows that go on from it: logits [P, V] after it."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width, device = int(lengths.max()), self.policy.device
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        flat = arrange_rows(ids, torch.arange(width) < lengths[:, None])
        places = tuple(x.to(device) for x in cache_places(flat, lengths, rows))
        layout = PackedPrompts(**layout_tensors(flat, device), buffers=self.buffers, places=places)
        # the last token of each prompt, of all of them one behind the other
        last = (lengths.cumsum(0) - 1).to(device)
        return self.read(layout, last)

    def forward(self, rows: int, reach: int) -> Tensor:
        """Logits [rows, V] after what each of the first rows has said last.

        reach: so many keys of a row are read.
        """
        state = self.buffers
        # the last token is not in the cache yet: it stands behind all that is
        position = state.start[:rows] + state.length[:rows] - 1
        return self.read(DecodeStep(state.token[:rows], position, state, reach))

    def read(self, layout: Any, last: Tensor | None = None) -> Tensor:
        """Logits after the packed tokens, or some of them.

        Under autocast for what is not the twin's own: an embedding may look for it.
        """
        with self.policy.autocast():
            hidden = encode(self.twin.body, layout)
            return self.twin.logits(hidden if last is None else hidden[last])

    def note(self, row_B: Tensor, logits: Tensor, how: SamplingParameters) -> None:
        """Draw a token for rows that still speak, and note it.

        Who says an end token, or as much as it may, is closed.
        """
        state = self.buffers
        open_B, length_B = state.open[row_B], state.length[row_B]
        # a row that has ended may be as long as the buffer: any number will do for it
        point_B = state.uniform[row_B, length_B.clamp(max=state.longest - 1)]
        ids, logp = sample_tokens(
            logits, point_B, how.temperature, top_k=how.top_k, top_p=how.top_p
        )
        # what is drawn for rows that have ended goes to the last column, which nobody reads
        into_B = torch.where(open_B, length_B, state.longest)
        state.out_ids[row_B, into_B] = ids
        state.out_logp[row_B, into_B] = logp.to(state.out_logp.dtype)
        state.token[row_B] = torch.where(open_B, ids, state.token[row_B])
        length_B = length_B + open_B
        state.length[row_B] = length_B
        ended_B = (ids[:, None] == self.eos).any(1) | (length_B >= state.limit[row_B])
        state.open[row_B] = open_B & ~ended_B

    def step(self, rows: int, reach: int, how: SamplingParameters) -> None:
        """One token more for the first `rows` places.

        The same calls on the same memory each time: a graph of it can be replayed.
        """
        self.note(self.buffers.every[:rows], self.forward(rows, reach), how)

    @torch.no_grad()
    def advance(self, rows: int, reach: int, how: SamplingParameters) -> None:
        """`step`; on CUDA the first of a kind as it is, all others as a graph of it."""
        key = (rows, reach, how)
        if key in self.graphs:
            return self.graphs[key].replay()
        self.step(rows, reach, how)
        if self.graphed:
            self.capture(key)

    def capture(self, key: tuple[int, int, SamplingParameters]) -> None:
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
        ids_NL = probe_ids(self.config.vocab_size).to(self.policy.device)
        found = self.probe(ids_NL)
        self.release()
        wanted = probe_logits(self.policy, ids_NL).double()
        gap = (found - wanted).abs().flatten().sort()[0]
        unit = rounding_tolerance(self.dtype, float(wanted.abs().max()))
        usual, worst = float(gap[int(0.99 * (len(gap) - 1))]), float(gap[-1])
        if usual < BOTH * USUAL * unit and worst < WORST * unit:
            return ""
        return (
            f"its logits would differ by {usual:.2g} (99 of 100) and {worst:.2g} (the worst), "
            f"where rounding explains {BOTH * USUAL * unit:.2g} and {WORST * unit:.2g}"
        )

    def probe(self, ids_NL: Tensor) -> Tensor:
        """Its logits after the prompts of a check and each of three tokens: [4, 2, V] float64."""
        starts = torch.tensor(PROBE_STARTS)
        rows = torch.arange(2)
        state = self.ready(2, 16, 4)
        prompts = [ints(ids[:start]) for ids, start in zip(ids_NL, PROBE_STARTS, strict=True)]
        found = [self.prefill(prompts, [[0], [1]]).double()]
        state.start[:2].copy_(starts)
        for t in range(3):
            state.token[:2].copy_(ids_NL[rows, starts + t])
            state.length[:2].fill_(t + 1)
            found.append(self.forward(2, 16).double())
        return torch.stack(found)


def cache_places(
    flat: Layout, lengths: Tensor, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the keys of packed prompts go: token, row and position of every copy.

    rows: for each prompt the rows that go on from it.
    """
    counts = torch.tensor([len(part) for part in rows])
    # the prompt of each row, and all tokens of that prompt
    prompt_R = torch.arange(len(lengths)).repeat_interleave(counts)
    ends = ints(lengths.cumsum(0))
    starts = ints(lengths.cumsum(0) - lengths)
    source = torch.cat([torch.arange(starts[n], ends[n]) for n in ints(prompt_R)])
    row_R = torch.tensor([row for part in rows for row in part])
    return source, row_R.repeat_interleave(lengths[prompt_R]), flat.position_M[source]


def layout_tensors(layout: Layout, device: torch.device) -> dict[str, Any]:
    """All that a layout holds, by name, on a device."""

    def there(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(there(one) for one in cast("tuple[Any, ...]", part))
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
    strange = sorted(
        {kind for _, _, kind in rotary_parameters(body).values()}.difference(STATIC_ROPES)
    )
    if strange:
        return f"rotary embedding {strange[0]}"
    return "" if plain_lora(policy.model) else "adapters other than plain LoRA"


def static_because(policy: LanguageModel) -> str:
    """Why a policy is not sampled with static buffers, "" where it can be."""
    if not policy.packs:
        return "a family whose pass laurel does not write out"
    if static_decoder_of(policy) is not None:
        return ""
    return static_obstacle(policy) or "its logits would differ"


@torch.no_grad()
def static_decoder_of(policy: LanguageModel) -> StaticDecoder | None:
    """The policy's static decoder with its weights as they are now; None where it cannot be.

    Made, and checked against the model, once per policy.
    """
    if not policy.packs or has_hooks(policy):
        return None
    made = policy.decoders.get("static", False)
    if made is False or (made and made.policy is not policy):
        made, why = None, static_obstacle(policy)
        if not why:
            made = StaticDecoder(policy)
            made.refresh()
            why = made.check()
        policy.decoders["static"] = made = None if why else made
    elif made:
        made.refresh()
    return made
