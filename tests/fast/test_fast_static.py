"""Static buffers beside the general sampler: same tokens, same log-probs; what a CUDA graph needs;
and memory that is given back.
"""

import pytest
import torch
from arithmetic import near
from devices import DEVICES
from peft import LoraConfig, get_peft_model
from test_fast_decode import KINDS, PROMPTS, same, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from laurel.core.sample import sample_seed
from laurel.fast import inflight, static
from laurel.fast.decode import first_part_beyond, inverse_cdf, sample_tokens
from laurel.fast.inflight import InFlight, batch_size_step, memory_of, rows_that_fit
from laurel.fast.logprob import USUAL, WORST
from laurel.fast.static import (
    BOTH,
    SamplingParameters,
    StaticDecoder,
    static_because,
    static_decoder_of,
)
from laurel.model.policy import Policy
from laurel.rollout.general import sample_general
from laurel.rollout.sampler import choose_sampling_way, decoder_of, sample

FIRST = (
    "qwen2",
    "mistral, window",
    "gemma 3",
    "gemma 2",
    "phi 3, half rotary",
    "smollm 3",
    "olmo-2",
)
"""Kinds that between them have every part; the others at full length."""
EVERY = [
    kind if kind in FIRST else pytest.param(kind, marks=pytest.mark.whole)
    for kind in (*KINDS, "olmo-2")
]
SEEDS = [sample_seed(0, str(i), g, 0) for i in range(len(PROMPTS)) for g in range(4)]
LIMITS = [24 - 2 * (n % 5) for n in range(len(SEEDS))]


def on(device, kind, dtype=torch.float32, **how):
    """A tiny random model of that kind, there."""
    policy = tiny(kind, dtype=dtype, **how)
    policy.model.to(device)
    return policy


def ours(policy, how=None, stop=(), rows=1024, check=16, limits=LIMITS):
    return InFlight(static_decoder_of(policy), PROMPTS, 4, SEEDS, limits, rows, check).run(
        how or SamplingParameters(), tuple(stop)
    )


def general(policy, how=None, stop=(), limits=LIMITS):
    return sample_general(
        policy, PROMPTS, 4, SEEDS, limits, *(how or SamplingParameters()), tuple(stop), 1024
    )


def adapted(policy, **how):
    """With LoRA adapters that say something."""
    wrapped = get_peft_model(
        policy.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **how)
    ).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return Policy(wrapped, policy.tokenizer, policy.dtype)


def narrowed(model, weights):
    """Its weights in that precision; frequencies of rotary embeddings stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(weights)
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", EVERY)
def test_completions_equal_the_general_sampler_s(kind, device):
    """Ragged prompts, eight rows in flight of 24, a look every five tokens, limits per row: the
    same tokens, log-probs to rounding.
    """
    policy = on(device, kind)
    assert static_because(policy) == ""
    same(ours(policy, rows=8, check=5), general(policy))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "how",
    [SamplingParameters(0.0), SamplingParameters(1.3, top_p=0.8), SamplingParameters(0.7, 7, 0.9)],
)
def test_ways_to_draw(how, device):
    policy = on(device, "qwen3")
    same(ours(policy, how, rows=9), general(policy, how))


def test_nothing_depends_on_when_the_host_looks_nor_on_who_is_beside():
    """A look every 1, 3 or 16 tokens; 1, 3, 8 rows in flight or all; a prompt alone: the same
    samples.
    """
    policy = on("cpu", "llama")
    wanted = ours(policy)
    assert {c.finish for c in wanted} == {"eos", "length"}
    for check, rows in ((1, 1024), (3, 8), (16, 3)):
        same(ours(policy, rows=rows, check=check), wanted)
    for i, prompt in list(enumerate(PROMPTS))[1:4]:
        alone = InFlight(
            static_decoder_of(policy),
            [prompt],
            2,
            SEEDS[4 * i + 1 : 4 * i + 3],
            LIMITS[4 * i + 1 : 4 * i + 3],
            1024,
        )
        same(alone.run(SamplingParameters(), ()), wanted[4 * i + 1 : 4 * i + 3])


@pytest.mark.parametrize("check", [4, 16])
def test_stop_strings_end_a_row_where_they_first_stand(check):
    """Found at a look, and what was said behind them is thrown away."""
    policy = on("cpu", "llama")
    free = general(policy)
    stop = [policy.tokenizer.decode(free[n].ids[4:6]) for n in (0, 9, 22)] + [
        policy.tokenizer.decode(free[5].ids[:1])
    ]
    found = ours(policy, stop=stop, rows=12, check=check)
    assert sum(c.finish == "stop" for c in found) >= 4 and {c.finish for c in found} >= {
        "stop",
        "length",
    }
    same(found, general(policy, stop=stop))


@pytest.mark.parametrize("device", DEVICES)
def test_adapters_are_merged_and_can_be_switched_off(device):
    policy = on(device, "llama with biases")
    plain = ours(policy)
    policy = adapted(policy)
    policy.model.to(device)
    found = ours(policy)
    same(found, general(policy))
    assert found != plain
    with policy.model.disable_adapter():
        assert [c.ids for c in ours(policy)] == [c.ids for c in plain]


def test_adapters_that_are_not_plain_are_left_to_the_general_path():
    policy = adapted(on("cpu", "llama"), use_dora=True)
    assert static_because(policy) == "adapters other than plain LoRA" and decoder_of(policy) is None


def test_weights_changed_in_place_are_seen_and_moved_ones_too():
    """An optimiser's step, and a fresh tensor behind .data: the addresses that a graph would know
    change only with the second.
    """
    policy = on("cpu", "qwen2")
    seen = [ours(policy)]
    places = static_decoder_of(policy).addresses
    for way in ("step", "data"):
        static_decoder_of(policy).graphs["kept"] = None
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if way == "step":
                    parameter.add_(0.05 * torch.randn_like(parameter))
                else:
                    parameter.data = 1.1 * parameter.data
        assert (
            (static_decoder_of(policy).addresses == places)
            == bool(static_decoder_of(policy).graphs)
            == (way == "step")
        )
        found = ours(policy)
        same(found, general(policy))
        assert found != seen[-1]
        seen.append(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kind",
    [
        "qwen3",
        "llama with biases",
        *(pytest.param(kind, marks=pytest.mark.whole) for kind in ("gemma 3", "phi 3")),
    ],
)
def test_bfloat16_is_as_near_to_the_trainer_as_bfloat16_can_be(kind, weights, device):
    """Log-probs beside the autocast forward pass, in what rounding explains: 99 of 100 within BOTH
    times USUAL, all within WORST.

    Weights are cast once; float32 ones become one product where they read the same, bfloat16 ones
    are used where they lie.
    """
    policy = on(device, kind)
    policy = Policy(narrowed(policy.model, weights), policy.tokenizer, torch.bfloat16)
    policy = adapted(policy) if kind == "qwen3" else policy
    policy.model.to(device)
    gaps = []
    for n, completion in enumerate(ours(policy)):
        prompt = PROMPTS[n // 4]
        with torch.no_grad(), policy.autocast():
            logits = (
                policy.model(torch.tensor([prompt + completion.ids], device=device))
                .logits[0, len(prompt) - 1 : -1]
                .float()
                .cpu()
            )
        logp = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        gaps.append((logp - torch.tensor(completion.logps)).abs())
    gap = torch.cat(gaps)
    assert (
        0 < float(gap.quantile(0.99)) < BOTH * USUAL * policy.slack
        and float(gap.max()) < WORST * policy.slack
    )
    copies = static_decoder_of(policy).twin.copies
    assert any("qkv" in name for name in copies) == (weights == torch.float32 or kind == "qwen3")
    assert all(copy.dtype == torch.bfloat16 for name, copy in copies.items() if "norm" not in name)


class Watching(TorchDispatchMode):
    """Notes each call: its name, and the shapes it makes. Fails where the host would have to wait
    for the device.
    """

    ASKING = (
        "_local_scalar_dense",
        "nonzero",
        "item",
        "_unique2",
        "is_nonzero",
        "equal",
        "masked_select",
        "_to_cpu",
    )

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        assert name not in self.ASKING, f"{name} asks the device"
        bools = [
            i
            for x in args
            if isinstance(x, list | tuple)
            for i in x
            if isinstance(i, torch.Tensor) and i.dtype == torch.bool
        ]
        assert not (name.startswith("index") and bools), (
            f"{name} with a mask: its size depends on what is there"
        )
        found = function(*args, **(kwargs or {}))
        shapes = [
            tuple(x.shape)
            for x in (found if isinstance(found, list | tuple) else [found])
            if isinstance(x, torch.Tensor)
        ]
        self.calls.append((name, shapes))
        return found


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("gemma 3", SamplingParameters()),
        ("gemma 2", SamplingParameters(0.7, 5, 0.9)),
        ("olmo-2", SamplingParameters(0.0)),
        ("phi 3, half rotary", SamplingParameters(0.7)),
    ],
)
@torch.no_grad()
def test_a_step_is_what_a_graph_can_hold(kind, how):
    """Steps ask the device nothing, make the same calls of the same shapes, and write to the same
    memory, rows ending in between or not.
    """
    policy = on("cpu", kind)
    made = static_decoder_of(policy)
    running = InFlight(made, PROMPTS, 4, SEEDS, [2 + n % 9 for n in range(len(SEEDS))], 1024)
    running.admit(len(SEEDS), how)
    memory = {
        name: value.data_ptr()
        for name, value in vars(made.buffers).items()
        if isinstance(value, torch.Tensor)
    }
    calls, open_rows = [], []
    for _ in range(6):
        with Watching() as watching:
            made.advance(24, 64, how)
        calls.append(watching.calls)
        open_rows.append(int(made.buffers.open.sum()))
    assert len(set(open_rows)) > 2 and calls[0] and all(one == calls[0] for one in calls)
    assert memory == {
        name: value.data_ptr()
        for name, value in vars(made.buffers).items()
        if isinstance(value, torch.Tensor)
    }


def test_the_watching_catches():
    """The mode above is not blind: a question, a mask and a count are found."""
    x = torch.arange(3)
    for wrong in (
        lambda: x.sum().item(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.unique(),
    ):
        with pytest.raises(AssertionError), Watching():
            wrong()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen3", "gemma 3", "gemma 2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_draw_what_single_steps_draw(kind, dtype):
    """On CUDA: steps replayed from graphs, and steps called one by one, to the bit; graphs are
    used, and used again in a second call.
    """
    policy = on("cuda", kind, dtype)
    with_graphs = ours(policy, rows=8)
    made = static_decoder_of(policy)
    assert made.graphed and made.graphs
    kept = dict(made.graphs)
    assert ours(policy, rows=8) == with_graphs and made.graphs == kept
    made.graphed = False
    made.graphs.clear()
    assert ours(policy, rows=8) == with_graphs and not made.graphs


@pytest.mark.gpu
def test_cuda_samples_what_the_cpu_samples():
    """float32: the same tokens from the same seeds on both devices, log-probs to rounding."""
    same(ours(on("cuda", "qwen3")), ours(on("cpu", "qwen3")))


def test_rows_in_flight_fit_into_half_of_what_is_free(monkeypatch):
    """Memory for five rows: five are in flight, a group enters in parts, and the samples are the
    same; for none: one.
    """
    policy = on("cpu", "llama")
    made, wanted = static_decoder_of(policy), ours(policy, rows=8)
    for rows, group in ((5, 4), (3, 3)):
        made.release()
        free = 2 * made.a_row(64, 24) * rows + 1
        monkeypatch.setattr(inflight, "device_memory", lambda device, free=free: (free, 1 << 40))
        running = InFlight(made, PROMPTS, 4, SEEDS, LIMITS, 1024)
        assert running.size == running.group == group and running.buffers.rows <= rows
        same(running.run(SamplingParameters(), ()), wanted)
    monkeypatch.setattr(inflight, "device_memory", lambda device: (0, 1 << 40))
    made.release()
    assert rows_that_fit(made, 64, 24) == 1
    monkeypatch.setattr(inflight, "device_memory", lambda device: None)
    assert rows_that_fit(made, 64, 24) > 1 << 30


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_memory_is_foreseen_from_shapes(weights):
    """Keys and values, and copies of weights, to a twentieth: with adapters everything with one is
    copied, else what is cast.
    """
    for kind in ("qwen3", "phi 3"):
        policy = on("cpu", kind, torch.bfloat16)
        narrowed(policy.model, weights)
        policy = adapted(policy) if kind == "qwen3" else policy
        foreseen = memory_of(policy, 24, 36, 24)
        made = StaticDecoder(policy)
        made.refresh()
        buffers = made.ready(24, 64, 24)
        norms = sum(
            copy.nbytes
            for name, copy in made.twin.copies.items()
            if "norm" in name or "bias" in name
        )
        assert foreseen["keys and values"] == pytest.approx(buffers.bytes, rel=0.05)
        assert foreseen["sampler's weights"] == made.twin.bytes - norms and bool(
            foreseen["sampler's weights"]
        ) == (weights == torch.float32 or kind == "qwen3")
        assert foreseen["sampled logits"] == 24 * 16 * made.config.vocab_size


def test_memory_is_given_back_where_it_is_much(monkeypatch):
    """Of 1 TB what a tiny model holds stays, with its addresses; of a megabyte nothing does, and
    the next call samples the same.
    """
    policy = on("cpu", "olmo-2", torch.bfloat16)
    how = {"seeds": SEEDS, "max_completion_length": 9}
    monkeypatch.setattr(static, "device_memory", lambda device: (1 << 40, 1 << 40))
    first = sample(policy, PROMPTS, **how)
    held = policy.decoders["static"].made
    assert held is not None and policy.decoders["static"].twin.copies
    assert sample(policy, PROMPTS, **how) == first and policy.decoders["static"].made is held
    monkeypatch.setattr(static, "device_memory", lambda device: (1 << 20, 1 << 20))
    assert sample(policy, PROMPTS, **how) == first
    assert policy.decoders["static"].made is None and not policy.decoders["static"].twin.copies
    assert sample(policy, PROMPTS, **how) == first


def test_without_a_compiler_static_buffers_sample(monkeypatch, caplog):
    """One line says which way it is and why; hooks anywhere are called: then the general path is
    taken, and nothing is said.
    """
    policy, other = on("cpu", "llama"), on("cpu", "llama")
    monkeypatch.setattr("laurel.fast.decode.load_library", lambda: None)
    hook = other.causal.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output
    )
    assert decoder_of(other) is None and not caplog.records
    hook.remove()
    for _ in range(2):
        done = sample(policy, PROMPTS, seeds=SEEDS, max_completion_length=LIMITS)
    same(done, general(policy))
    assert choose_sampling_way(policy).name == "static"
    (line,) = [record.message for record in caplog.records if "sampled" in record.message]
    assert "with static buffers: there is no C++ compiler" in line


def test_a_model_that_computes_something_else_is_found_out():
    """A layer that says a ten-thousandth more than its weights do not pass the check; nor does a
    window of another length.
    """
    for kind, wrong in (
        (
            "llama",
            lambda layer: setattr(
                layer.mlp.down_proj, "weight", layer.mlp.down_proj.weight * 1.0001
            ),
        ),
        ("gemma 3", lambda layer: setattr(layer.self_attn, "sliding_window", 2)),
    ):
        policy = on("cpu", kind)
        made = static_decoder_of(policy)
        assert made.check() == ""
        wrong(made.twin.body.layers[0])
        assert "its logits would differ" in made.check() and "rounding explains" in made.check()


def test_rungs():
    """Sizes that double with one between: a count fits, and is at least two thirds of its rung."""
    assert [batch_size_step(n, 8, 100) for n in (1, 8, 9, 13, 17, 33, 49, 70, 100)] == [
        8,
        8,
        12,
        16,
        24,
        48,
        64,
        96,
        100,
    ]
    assert all(
        batch_size_step(n, 8, 1 << 30) >= n > 0.66 * batch_size_step(n, 8, 1 << 30)
        for n in range(9, 3000)
    )


def test_a_token_that_cannot_be_is_never_drawn():
    """Words of probability 0 at both ends and between, uniforms at every edge: none of those is
    drawn, and every other can be.
    """
    logits = torch.randn(4000, 700, generator=torch.Generator().manual_seed(0))
    logits[:, :3] = logits[:, 250:520] = logits[:, 690:] = -torch.inf
    total = logits.double().softmax(1).cumsum(1)
    uniform = (
        torch.where(torch.arange(4000) % 2 == 0, total[:, 249], total[:, 600])
        - torch.arange(4000) % 5 * 1e-8
    )
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    ids, logp = sample_tokens(logits, uniform.clamp(0, 1 - 2**-53), 1.0)
    assert logp.isfinite().all() and logp.tolist() == near(
        logits.log_softmax(1).gather(1, ids[:, None])[:, 0]
    )
    assert ids[0] == 3 and ids[1] == 689


@pytest.mark.parametrize("words", [1, 3, 256, 257, 700])
def test_sums_of_words_first_is_the_same_as_one_word_after_the_other(words):
    p = torch.rand(
        300, words, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).softmax(1)
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert inverse_cdf(p, uniform).tolist() == first_part_beyond(p, uniform * p.sum(1))[0].tolist()
