"""Parts of bench/gpu.sh, each a process of its own: what is there, rollouts by several samplers,
steps of GRPO, and the table.

python bench/gpu.py look | rollout WAY | step WAY | table, each with [--out FOLDER] [--quick]

WAY: `static` (static buffers, graphs on CUDA), `single` (the same without graphs), `general`
(transformers' forward, dynamic cache); for rollouts also `generate` and `continuous` (transformers'
generate and its continuous batching). The model has the shape of Qwen2.5-0.5B and random weights,
made where it is used; --quick takes a tiny one, to see that the path works. Every part adds a line
to parts.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

SPEED = Path(__file__).resolve().parent / "speed"
NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "peft",
    "numpy",
    "scipy",
    "pydantic",
    "yaml",
    "rich",
    "jinja2",
    "matplotlib",
    "pytest",
    "hypothesis",
)
"""What the library and its tests import."""
REAL = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
}
END = 1
ROLLOUTS, STEPS = ("static", "single", "general", "generate", "continuous"), ("static", "general")


def look(quick: bool) -> dict[str, Any]:
    """Versions, the device, and what is missing."""
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    found: dict[str, Any] = {"python": sys.version.split()[0], "missing": missing, "gpu": None}
    for name in ("torch", "transformers", "peft", "trl"):
        found[name] = metadata.version(name) if util.find_spec(name) else "not installed"
    if "torch" not in missing:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
            found["memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def sizes(quick: bool) -> tuple[int, int, int, int]:
    """Prompts, samples of each, tokens of a prompt, new tokens."""
    return (3, 2, 5, 9) if quick else (64, 8, 128, 256)


def model_of(quick: bool, device: Any, dtype: Any) -> Any:
    """Random weights, the same for everybody, made where they are used."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "eos_token_id": END,
        "pad_token_id": 2,
        "bos_token_id": 0,
    }
    with torch.device(device):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(Qwen2Config(**(TINY if quick else REAL), **shape)).to(dtype).eval()


def tokenizer_of(quick: bool) -> Any:
    """Words `t3`, `t4`, ... as the workloads of bench/speed have them."""
    sys.path.insert(0, str(SPEED))
    from models import make_tokenizer

    return make_tokenizer((TINY if quick else REAL)["vocab_size"])


def place() -> Any:
    """The GPU, or the CPU where there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(device: Any, work: Callable[[], Any], times: int) -> dict[str, Any]:
    """Seconds of each repetition behind a first one that makes what is made once; and the peak of
    memory.
    """
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = list[float]()
    for _ in range(times + 1):
        wait()
        if len(seconds) == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return {
        "first": round(seconds[0], 3),
        "seconds": [round(one, 3) for one in seconds[1:]],
        "peak_gb": peak,
    }


def ways(way: str) -> None:
    """Let `sample` take that way; on a CPU static buffers are what is left without the compact
    decoder.
    """
    from laurel.fast import decode, static
    from laurel.rollout import sampler as chosen

    decode.load_library = lambda: None
    if way == "general":
        chosen.static_decoder_of = lambda policy: None
    if way == "single":
        static.StaticDecoder.capture = lambda self, key: None


def rollout(way: str, quick: bool) -> dict[str, Any]:
    """64 prompts of 128 tokens x 8, 256 new tokens each, in bfloat16 on a GPU: tokens per
    second.
    """
    import torch

    prompts, each, width, new = sizes(quick)
    device, size = place(), (TINY if quick else REAL)["vocab_size"]
    ids = torch.randint(3, size, (prompts, width), generator=torch.Generator().manual_seed(1))
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    if way in ("generate", "continuous"):
        work = peer(way, model_of(quick, device, half), ids, each, new)
    else:
        work = own(
            way, model_of(quick, device, torch.float32), tokenizer_of(quick), half, ids, each, new
        )
    found = timed(device, work, 1 if way == "general" else 2)
    return {**found, "tokens_per_second": round(prompts * each * new / min(found["seconds"]))}


def own(
    way: str, model: Any, tokenizer: Any, dtype: Any, ids: Any, each: int, new: int
) -> Callable[[], None]:
    """laurel's sampler."""
    from laurel.model.policy import Policy
    from laurel.rollout.sampler import decoder_of, sample

    ways(way)

    class Endless(Policy):
        """No token ends its answers."""

        eos_ids = frozenset[int]()  # type: ignore[assignment]

    policy = Endless(model, tokenizer, dtype)
    prompts = [tuple(row) for row in ids.tolist()]

    def work() -> None:
        found = sample(
            policy, prompts, seeds=list(range(len(prompts) * each)), max_completion_length=new
        )
        assert all(len(one.ids) == new for one in found)

    assert (decoder_of(policy) is None) == (way == "general")
    return work


def peer(way: str, model: Any, ids: Any, each: int, new: int) -> Callable[[], None]:
    """transformers' `generate`, or its continuous batching, which is asked for log-probabilities,
    as ours gives them.
    """
    import torch
    from transformers import GenerationConfig

    how = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=new,
        pad_token_id=2,
        eos_token_id=[],
    )
    rows = ids.repeat_interleave(each, 0)

    @torch.no_grad()
    def generate() -> None:
        there = rows.to(model.device)
        model.generate(
            input_ids=there, attention_mask=torch.ones_like(there), generation_config=how
        )

    def continuous() -> None:
        from transformers.generation import ContinuousBatchingConfig

        how.eos_token_id = -1
        small = (
            {"num_blocks": 64, "page_size": 32, "max_batch_tokens": 64}
            if model.device.type == "cpu"
            else {}
        )  # else all memory
        asked = ContinuousBatchingConfig(return_logprobs=True, **small)
        found = model.generate_batch(
            inputs=rows.tolist(),
            generation_config=how,
            continuous_batching_config=asked,
            progress_bar=False,
        )
        assert len(found) == len(rows) and all(
            len(one.generated_tokens) == new for one in found.values()
        )

    return generate if way == "generate" else continuous


def judge(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs from sample to sample."""
    return [sum(ids) % 97 / 97 for ids in completion_ids]


def step(way: str, quick: bool) -> dict[str, Any]:
    """Steps of GRPO, 8 prompts x 8 (all weights, AdamW), and the memory that was announced before
    the first.
    """
    import torch

    from laurel.core.config import TrainConfig
    from laurel.core.metrics import Sums
    from laurel.train import loop
    from laurel.train.memory import memory
    from laurel.train.setup import prepare_session

    ways(way)
    _, each, width, new = sizes(quick)
    device, tokenizer = place(), tokenizer_of(quick)
    with tempfile.TemporaryDirectory() as folder:
        model_of(quick, device, torch.float32).save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        ids = torch.randint(
            3, len(tokenizer), (8, width), generator=torch.Generator().manual_seed(1)
        )
        rows = [{"prompt": " ".join(f"t{i}" for i in row)} for row in ids.tolist()]
        (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {
            "model": f"{folder}/model",
            "dataset": f"{folder}/rows.jsonl",
            "output_dir": f"{folder}/run",
            "eval_size": 0,
            "rewards": [f"{Path(__file__).resolve()}:judge"],
            "prompts_per_step": 8,
            "num_generations": each,
            "max_completion_length": new,
            "max_steps": 9,
            "learning_rate": 1e-6,
        }
        setup, state = prepare_session("grpo", TrainConfig.model_validate(options))
        foreseen = (
            float(memory(setup).partition("at its largest about ")[2].split()[0].strip(",")) / 1e3
        )
        found = timed(device, lambda: loop.step(setup, state, Sums()), 2)
        setup.run.close()
    return {**found, "foreseen_gb": foreseen}


def table(out: Path) -> str:
    """What the parts said, as Markdown."""
    lines = [
        json.loads(line) for line in (out / "parts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    there = next((one for one in reversed(lines) if one["part"] == "look"), {})
    text = (
        f"{there.get('gpu') or 'no GPU: a CPU, tiny shapes'}, torch {there.get('torch')},"
        f" transformers {there.get('transformers')}\n\n"
    )
    text += (
        "| part | first, s | then, s | tokens/s | peak GB | announced GB"
        " |\n|---|--:|--:|--:|--:|--:|\n"
    )
    for one in lines:
        if one["part"] == "look":
            continue
        cells = [
            one.get("first"),
            ", ".join(map(str, one.get("seconds", []))),
            one.get("tokens_per_second"),
        ]
        cells += [
            one.get("peak_gb") and round(one["peak_gb"], 2),
            one.get("foreseen_gb") and round(one["foreseen_gb"], 2),
        ]
        said = (
            [one["failed"], *[""] * 4]
            if "failed" in one
            else ["" if cell is None else str(cell) for cell in cells]
        )
        text += f"| {one['part']} | {' | '.join(said)} |\n"
    return text


def main(words: Sequence[str] | None = None) -> int:
    """One part. 3: there is no GPU, and nothing was said of --quick. 4: something that it needs is
    not installed.
    """
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("part", choices=["look", "rollout", "step", "table"])
    parser.add_argument("way", nargs="?", choices=ROLLOUTS, default="static")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "table":
        text = table(args.out)
        (args.out / "gpu.md").write_text(text, encoding="utf-8")
        print(text)
        return 0
    name = args.part if args.part == "look" else f"{args.part} {args.way}"
    work = {
        "look": look,
        "rollout": lambda quick: rollout(args.way, quick),
        "step": lambda quick: step(args.way, quick),
    }[args.part]
    try:
        found = work(args.quick)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]}
        raise
    finally:
        with open(args.out / "parts.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"part": name, **found}) + "\n")
    print(json.dumps({"part": name, **found}))
    if args.part != "look":
        return 0
    return 4 if found["missing"] else 0 if found["gpu"] or args.quick else 3


if __name__ == "__main__":
    sys.exit(main())
