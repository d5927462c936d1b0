"""laurel's side: its public functions as a run calls them, whatever path they take inside."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import models
import torch
from measure import Turns, forget_peak, give_back_at_once, peak_mb, resident_mb, synchronise
from models import Shape

from laurel.core.config import TrainConfig
from laurel.core.metrics import Sums
from laurel.core.sample import Batch, Draw, Group, Key, Sample
from laurel.fast.decode import CompactDecoder
from laurel.fast.logprob import chunked_logprobs
from laurel.model.policy import Policy, pick_device, pick_dtype
from laurel.rollout.general import sample_general
from laurel.rollout.pack import pack
from laurel.rollout.sampler import Sampler, sample
from laurel.train import loop
from laurel.train.options import defaults
from laurel.train.record import record_time
from laurel.train.roofline import Work, body_of, bound_seconds, count_sampling
from laurel.train.session import Session
from laurel.train.setup import prepare_session

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def judge(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs from sample to sample."""
    return [sum(ids) % 97 / 97 for ids in completion_ids]


class Endless(Policy):
    """A policy that no token ends: lengths are given."""

    eos_ids = frozenset[int]()  # type: ignore[assignment]


@contextmanager
def given_lengths(limits: list[int]) -> Iterator[None]:
    """Rollouts of a step have these lengths, row by row, as the peer's have."""

    real = Sampler.generate

    def fixed(self: Sampler, prompts: Any, draw: Draw) -> Any:
        return real(self, prompts, replace(draw, limits=tuple(limits)))

    Sampler.generate = fixed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sampler.generate = real  # type: ignore[method-assign]


def endless(policy: Policy) -> Policy:
    """The same policy, which no token ends."""
    return Endless(policy.model, policy.tokenizer, policy.dtype, policy.template)


def rollout(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """`laurel.rollout.sampler.sample`: every prompt, G times, lengths given."""
    device = pick_device("auto")
    policy = Endless(
        models.make_model(shape).to(device),
        models.make_tokenizer(shape.vocabulary),
        pick_dtype(DTYPES[dtype], device),
    )
    prompts, limits = [tuple(ids) for ids in shape.prompt_ids().tolist()], shape.lengths().tolist()
    work = Work()
    count_sampling(
        work,
        body_of(policy.causal),
        policy.dtype.itemsize,
        [shape.prompt] * shape.prompts,
        shape.lengths().view(-1, shape.each).tolist(),
    )

    def once() -> dict[str, Any]:
        found = sample(
            policy, prompts, seeds=list(range(len(limits))), max_completion_length=limits
        )
        synchronise()
        assert [len(row.ids) for row in found] == limits
        return {
            "tokens": sum(limits),
            "bound": partial(bound_seconds, work, policy.dtype, device, {}),
        }

    turns.each(once)


def allowed(setup: Session) -> Callable[[], float]:
    """The seconds that the machine allows for the step that the clock saw, at rates that are
    measured when it is asked.
    """
    return partial(bound_seconds, setup.clock.work, setup.policy.dtype, setup.policy.device, {})


def setup_of(
    algorithm: str, shape: Shape, folder: Path, rows: list[dict[str, str]], **options: Any
) -> tuple[Session, Any]:
    """A Session as `laurel train` prepares it: model, tokenizer and rows from files."""
    os.environ["LAUREL_CACHE"] = str(folder / "cache")
    data = models.write(rows, folder / "rows.jsonl")
    common = {
        "model": models.save_model(shape, folder / "model"),
        "dataset": data,
        "output_dir": str(folder / "run"),
        "eval_size": 0,
    }
    threads = torch.get_num_threads()
    return prepare_session(
        algorithm,
        TrainConfig.model_validate(
            {"num_threads": threads, "learning_rate": 1e-4, **common, **options}
        ),
    )


def sampling_options(shape: Shape) -> dict[str, Any]:
    """What a step that samples is told."""
    return {
        "prompts_per_step": shape.prompts,
        "num_generations": shape.each,
        "max_completion_length": shape.high,
        "rewards": [f"{Path(__file__).resolve()}:judge"],
    }


def prompts_of(shape: Shape) -> list[dict[str, str]]:
    """The prompts as rows of data."""
    return [{"prompt": models.text(ids)} for ids in shape.prompt_ids()]


def samples(algorithm: str) -> bool:
    """Does the algorithm learn from samples of its own, by the table?"""
    return "rewards" in defaults(algorithm)


def rows_of(algorithm: str, shape: Shape) -> list[dict[str, Any]]:
    """Rows of the kind that the algorithm learns from, told by the options that it has."""
    own = defaults(algorithm)
    if "rewards" in own:
        return prompts_of(shape)
    if "train_on" in own:
        return models.texts(shape)
    return models.logged(shape) if "expectile" in own else models.pairs(shape)


def grpo(
    turns: Turns, shape: Shape, folder: Path, dtype: str, algorithm: str = "grpo", **more: Any
) -> None:
    """A step of the loop: sample, score, weigh, update. Lengths are given."""
    options = {**sampling_options(shape), **more}
    setup, state = setup_of(
        algorithm, shape, folder, prompts_of(shape), dtype=DTYPES[dtype], **options
    )
    setup.policy = endless(setup.policy)
    setup.clock.watch(setup.policy.device)
    limits = shape.lengths()[: shape.prompts * (setup.config.num_generations or 1)].tolist()

    def once() -> dict[str, Any]:
        sums = Sums()
        setup.clock.start()
        loop.step(setup, state, sums)
        spent = setup.clock.stop()
        synchronise()
        return {"tokens": sum(limits), "phases": spent, "bound": allowed(setup)}

    with given_lengths(limits):
        turns.each(once)


def profiled(turns: Turns, shape: Shape, folder: Path, dtype: str, algorithm: str) -> None:
    """Rows without a living peer on a CPU: tokens per second, the share of a step's time not spent
    in matrix products.
    """
    rows, options = rows_of(algorithm, shape), dict[str, Any]()
    if samples(algorithm):
        options |= sampling_options(shape)
        if defaults(algorithm)["num_generations"] == 1:
            options["num_generations"] = 1
    else:
        options["prompts_per_step"] = shape.batch
    setup, state = setup_of(
        algorithm,
        shape,
        folder,
        rows,
        dtype=DTYPES[dtype],
        profile=True,
        max_steps=10**6,
        **options,
    )
    if not setup.learns_from_data:
        setup.policy = endless(setup.policy)
    limits = shape.lengths()[: shape.prompts * (setup.config.num_generations or 1)].tolist()

    def once() -> dict[str, Any]:
        sums = Sums()
        setup.clock.steps, setup.clock.totals, setup.clock.rates = 0, {}, {}
        setup.clock.start()
        loop.step(setup, state, sums)
        record_time(setup, sums, state.step)
        means = sums.means()
        told = json.loads((setup.run.folder / "profile.json").read_text())
        tokens, seconds = means["tokens_per_second"] * means["seconds/step"], means["seconds/step"]
        share = in_products(lambda: loop.step(setup, state, Sums()))
        bound = told["roofline"] * seconds
        return {
            "tokens": tokens,
            "seconds": seconds,
            "bound": lambda: bound,
            "not_products": 1 - share,
            "profile": told,
        }

    with given_lengths(limits):
        turns.each(once)


def in_products(work: Callable[[], Any]) -> float:
    """Share of the time of `work` that is spent in matrix products: torch's (mm, addmm, bmm) and
    those of the compact decoder.
    """
    plain = CompactDecoder.product

    def told(*args: Any) -> torch.Tensor:
        with torch.profiler.record_function("laurel::product"):
            return plain(*args)

    CompactDecoder.product = told
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = time.perf_counter()
            work()
            spent = time.perf_counter() - began
    finally:
        CompactDecoder.product = plain
    names = {
        "laurel::product",
        *(f"aten::{name}{end}" for name in ("mm", "addmm", "bmm", "baddbmm") for end in ("", "_")),
    }
    return (
        sum(event.self_cpu_time_total for event in profile.key_averages() if event.key in names)
        / 1e6
        / spent
    )


def data(turns: Turns, shape: Shape, folder: Path, dtype: str, algorithm: str) -> None:
    """One pass over rows of data, batch by batch: DPO, a reward model, SFT. log ref is computed
    anew, as the peer does.
    """
    rows = rows_of(algorithm, shape)
    more = {"train_on": "all"} if "train_on" in defaults(algorithm) else {}
    setup, state = setup_of(
        algorithm, shape, folder, rows, dtype=DTYPES[dtype], prompts_per_step=shape.batch, **more
    )
    setup.reference_cache = None
    setup.clock.watch(setup.policy.device)

    def once() -> dict[str, Any]:
        sums = Sums()
        setup.clock.start()
        for _ in range(-(-shape.rows // shape.batch)):
            loop.step(setup, state, sums)
        synchronise()
        return {"tokens": sums.totals.get("supervised_tokens", 0.0), "bound": allowed(setup)}

    turns.each(once)


def soak(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """`laurel.train.loop.train` for many steps: how much memory is resident after a sixth of them,
    and at the end.
    """
    os.environ["LAUREL_CACHE"] = str(folder / "cache")
    model, rows = (
        models.save_model(shape, folder / "model"),
        models.write(prompts_of(shape), folder / "rows.jsonl"),
    )

    def once() -> dict[str, Any]:
        config = TrainConfig.model_validate(
            {
                **sampling_options(shape),
                "model": model,
                "dataset": rows,
                "output_dir": str(folder / f"run-{time.time_ns()}"),
                "eval_size": 0,
                "max_steps": shape.steps,
                "dtype": DTYPES[dtype],
                "learning_rate": 1e-5,
            }
        )
        held = [line["rss_mb"] for line in loop.train("grpo", config, quiet=True).metrics()]
        warm, window = max(1, len(held) // 6), max(1, len(held) // 20)
        start, end = mean(held[warm : warm + window]), mean(held[-window:])
        return {"growth_mb": end - start, "start_mb": start, "end_mb": end, "steps": len(held)}

    turns.each(once)


def logprob(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """Extra memory of `chunked_logprobs` forward and backward, over B * T * V * 4 bytes, at V and
    at 2 V.
    """
    rows, width, small = (8, 32, 1 << 10) if shape.size == "tiny" else (4 * 512, 256, 50_000)

    give_back_at_once()

    def extra(vocabulary: int, *, frozen: bool = False) -> float:
        head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen)
        hidden = torch.randn(rows, width, requires_grad=True)
        ids, ones = torch.randint(vocabulary, (rows,)), torch.ones(rows)
        hidden.grad, head.weight.grad = (
            torch.zeros_like(hidden),
            None if frozen else torch.zeros_like(head.weight),
        )  # what must be left
        forget_peak()
        before = resident_mb()
        chunked_logprobs(head, hidden, ids, ones, entropy="value").logp.sum().backward()
        return peak_mb() - before

    def once() -> dict[str, Any]:
        one, two = extra(small), extra(2 * small)
        frozen, at_twice = extra(small, frozen=True), extra(2 * small, frozen=True)
        unit = rows * small * 4 / 2**20
        return {
            "extra_mb": one,
            "unit_mb": unit,
            "share": one / unit,
            "growth": two / max(one, 1e-3),
            "extra_mb_at_twice_v": two,
            "growth_frozen": at_twice / max(frozen, 1e-3),
        }

    turns.each(once)


def gap(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """Nats between the log-probabilities of sampler and trainer, token by token, in `dtype` itself,
    whatever the CPU is good at.
    """
    policy = Endless(
        models.make_model(shape),
        models.make_tokenizer(shape.vocabulary),
        getattr(torch, DTYPES[dtype]),
    )
    prompts, limits = [tuple(ids) for ids in shape.prompt_ids().tolist()], shape.lengths().tolist()

    def apart(found: list[Any]) -> torch.Tensor:
        samples = [
            Sample(
                Key("bench", "", str(n), 0, 0),
                prompts[n // shape.each],
                c.ids,
                c.logps,
                (True,) * len(c.ids),
                1.0,
                "length",
                "",
                (),
            )
            for n, c in enumerate(found)
        ]
        batch = pack(
            [Group(str(n), {}, (sample,), rewards=(1.0,)) for n, sample in enumerate(samples)]
        )
        with torch.no_grad():
            return (policy.logp(batch).logp - batch.logp_old_NT)[batch.loss_mask_NT].abs()

    def once() -> dict[str, Any]:
        seeds = list(range(len(limits)))
        fast = apart(sample(policy, prompts, seeds=seeds, max_completion_length=limits))
        slow = apart(
            sample_general(policy, prompts, shape.each, seeds, limits, 1.0, 0, 1.0, (), 1024)
        )
        return {
            "largest": float(fast.max()),
            "mean": float(fast.mean()),
            "general_mean": float(slow.mean()),
        }

    turns.each(once)


def scaling(turns: Turns, shape: Shape, folder: Path, dtype: str) -> None:
    """Tokens per second of the sampler at 64 to 1,024 rows, and seconds of an update at completions
    of 64 to 512 tokens.
    """
    tiny = shape.size == "tiny"
    policy = Endless(
        models.make_model(shape),
        models.make_tokenizer(shape.vocabulary),
        getattr(torch, DTYPES[dtype]),
    )
    counts, lengths = ((2, 4), (4, 8)) if tiny else ((64, 128, 256, 512, 1024), (64, 128, 256, 512))
    prompt = tuple(shape.prompt_ids()[0].tolist())
    setup, state = setup_of(
        "grpo", shape, folder, prompts_of(shape), dtype=DTYPES[dtype], **sampling_options(shape)
    )

    def once() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for count in counts:
            prompts = [prompt] * (count // 2 if tiny else count // 8)
            draw = partial(
                sample, policy, prompts, seeds=list(range(count)), max_completion_length=shape.low
            )
            found[f"rows {count}"] = count * shape.low / timed(draw)
        for length in lengths:
            batch = update_batch(4 if tiny else 32, shape, length)
            with torch.no_grad():
                batch = batch.replace(logp_old_NT=setup.policy.logp(batch).logp)
            found[f"length {length}"] = timed(partial(loop.update, setup, state, batch, Sums()))
        tokens = (lengths[-1] + shape.prompt) / (lengths[0] + shape.prompt)
        slope = found[f"length {lengths[-1]}"] / found[f"length {lengths[0]}"] / tokens
        speeds = [found[f"rows {count}"] for count in counts]
        return {**found, "slope": slope, "worst_drop": min(b / a for a, b in pairwise(speeds))}

    state.step = 1
    turns.each(once)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def update_batch(rows: int, shape: Shape, length: int) -> Batch:
    """Rows of one length with weights that are not 0, as a step would train on them."""
    ids = torch.randint(
        models.WORDS,
        shape.vocabulary,
        (rows, shape.prompt + length),
        generator=torch.Generator().manual_seed(5),
    ).tolist()
    groups = []
    for n, row in enumerate(ids):
        key = Key("bench", "", str(n), 0, 0)
        new = Sample(
            key,
            tuple(row[: shape.prompt]),
            tuple(row[shape.prompt :]),
            (-5.0,) * length,
            (True,) * length,
            1.0,
            "length",
            "",
            (),
        )
        groups.append(Group(str(n), {}, (new,), rewards=(1.0,)))
    batch = pack(groups)
    return batch.replace(weight_NT=torch.where(batch.loss_mask_NT, 1.0, 0.0))
