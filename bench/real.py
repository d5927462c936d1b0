"""A real model, used in every way: does each end well, in the memory it announced, and is what it
saved what was trained?

python bench/real.py MODEL [--steps 3] [--only sft lora:sft sample ...] [--folder runs/real]
[--no-peers] [--also "--param_dtype bfloat16"]

Each way is a process of the `laurel` command on rows that this script makes. Printed: exit code,
peak memory beside what was announced before the first step, seconds, tokens per second of the last
step beside those of a peer (`generate` of transformers, TRL's trainers in float32; see
real_peers.py; --no-peers leaves them out), and how far the saved folder's logits are from those of
the newest checkpoint's weights. Both are read by plain transformers (and PEFT), in a process that
knows nothing of laurel; the gap is a share of the largest logit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from claim import table

READ = ("sample", "eval")
TRAINED = ("sft", "grpo", "dpo", "reward", "ppo")
ROWS, PROMPT, ANSWER = 24, 24, 16  # rows of data; words of a prompt and of an answer
WORDS = [
    "the",
    "sun",
    "rises",
    "over",
    "a",
    "quiet",
    "town",
    "while",
    "people",
    "walk",
    "to",
    "work",
    "and",
    "talk",
    "about",
    "rain",
]
REWARD = '''
def short_words(prompts, completions, **columns):
    """The share of words with fewer than five letters, and a little for early ones."""
    said = [text.split() for text in completions]
    early = [sum(letter < "n" for letter in text) / max(len(text), 1) for text in completions]
    short = [sum(len(word) < 5 for word in words) / max(len(words), 1) for words in said]
    return [share + 0.1 * e for share, e in zip(short, early)]
'''
ANNOUNCED = re.compile(r"at its largest about ([\d.]+)")

CHECK = """
import json, sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

run, base = Path(sys.argv[1]), sys.argv[2]
folder = run / "model"
adapter = (folder / "adapter_config.json").is_file()
scores = (run / "config.yaml").read_text().startswith("algorithm: reward")
kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
if adapter:
    from peft import PeftModel

    how = {"num_labels": 1} if scores else {}
    model = PeftModel.from_pretrained(kind.from_pretrained(base, **how), folder)
else:
    model = kind.from_pretrained(folder)
model = model.float().eval()
size = model.get_input_embeddings().weight.shape[0]
probe = torch.arange(16)[None] * (size // 16) % size


def plain(name):  # a weight's name without what peft wraps around it
    for wrapping in ("base_model.model.", ".default", ".modules_to_save", ".base_layer"):
        name = name.replace(wrapping, "")
    return name


@torch.no_grad()
def logits():
    return model(input_ids=probe).logits.double()


saved = logits()
newest = max(run.glob("checkpoints/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
own = {plain(name): p for name, p in model.named_parameters()}
put = 0
with safe_open(newest / "weights.safetensors", "pt") as file, torch.no_grad():
    for name in file.keys():
        if plain(name) in own:
            own[plain(name)].copy_(file.get_tensor(name))
            put += 1
trained = logits()
print(json.dumps({
    "gap": float((saved - trained).abs().max() / trained.abs().max()),
    "put": put,
    "kind": "adapter" if adapter else "model",
    "megabytes": sum(at.stat().st_size for at in folder.glob("*.safetensors")) / 1e6,
}))
"""


@dataclass
class Outcome:
    """What one way came to. Memory in MB, `announced` before the first step; `gap` as a share of
    the largest logit.
    """

    way: str
    code: int
    seconds: float
    peak: float
    announced: float | None = None
    speed: float | None = None
    peer: float | None = None
    gap: float | None = None
    kept: str = ""
    said: str = ""

    def cells(self) -> list[str]:
        beside = self.peak / self.announced if self.announced else None
        faster = self.speed / self.peer if self.speed and self.peer else None
        told = [
            f"{value:{form}}" if value is not None else "-"
            for value, form in (
                (self.announced, ",.0f"),
                (beside, ".2f"),
                (self.speed, ",.0f"),
                (self.peer, ",.0f"),
                (faster, ".1f"),
                (self.gap, ".1e"),
            )
        ]
        return [
            self.way,
            str(self.code),
            f"{self.seconds:.0f}",
            f"{self.peak:,.0f}",
            *told,
            self.kept,
            self.said,
        ]


HEADER = [
    "way",
    "exit",
    "seconds",
    "peak MB",
    "announced",
    "peak / announced",
    "tokens/s",
    "peer's",
    "ratio",
]
HEADER += ["saved against trained", "saved", "last words"]


def make_rows(folder: Path) -> None:
    """Prompts, demonstrations and pairs of plain words, and a reward."""
    folder.mkdir(parents=True, exist_ok=True)

    def some(start: int, count: int) -> str:
        return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(count))

    files: dict[str, Callable[[int], dict[str, str]]] = {
        "prompts": lambda i: {"prompt": some(i, PROMPT) + f" {i}"},
        "shown": lambda i: {
            "prompt": some(i, PROMPT) + f" {i}",
            "completion": " " + some(i + 1, ANSWER),
        },
        "pairs": lambda i: {
            "prompt": some(i, PROMPT) + f" {i}",
            "chosen": " " + some(i + 1, ANSWER),
            "rejected": " " + some(i + 2, ANSWER // 2),
        },
    }
    for name, row in files.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row(i)) + "\n" for i in range(ROWS))
        )
    (folder / "reward.py").write_text(REWARD)


def words_of(way: str, model: str, folder: Path, steps: int, also: list[str]) -> list[str]:
    """The command line of a way. also: further words of those that train."""
    name = way.removeprefix("lora:")
    if name in READ and way != name:
        model = str(folder / "lora-sft" / "model")  # the adapters that lora:sft saved
    if name == "sample":
        return [
            "sample",
            "The sun rises",
            "--model",
            model,
            "--num_generations",
            "4",
            "--max_completion_length",
            "16",
        ]
    if name == "eval":
        rewards = ["--rewards", f"{folder}/reward.py:short_words"]
        return [
            "eval",
            "--model",
            model,
            "--dataset",
            f"{folder}/prompts.jsonl",
            "--max_completion_length",
            "16",
            *rewards,
        ]
    words = [
        "train",
        name,
        "--model",
        model,
        "--output_dir",
        str(folder / way.replace(":", "-")),
        "--max_steps",
        str(steps),
    ]
    rows = {"sft": "shown", "dpo": "pairs", "reward": "pairs"}.get(name, "prompts")
    words += ["--prompts_per_step", "4", "--eval_size", "0", "--learning_rate", "1e-5"]
    words += [
        "--dataset",
        f"{folder}/{rows}.jsonl",
    ]
    if name in ("grpo", "ppo"):
        words += ["--rewards", f"{folder}/reward.py:short_words", "--max_completion_length", "16"]
        words += ["--num_generations", "4"] if name == "grpo" else []
    return [*words, *(["--use_peft", "true"] if way.startswith("lora:") else []), *also]


def carried_out(way: str, model: str, folder: Path, steps: int, also: list[str]) -> Outcome:
    """Run one way to its end; what it printed lies in `WAY.log`."""
    where = folder / way.replace(":", "-")
    shutil.rmtree(where, ignore_errors=True)
    log = folder / f"{where.name}.log"
    began = time.perf_counter()
    with log.open("w") as file:
        command = [sys.executable, "-m", "laurel", *words_of(way, model, folder, steps, also)]
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)  # its peak of memory, and of nobody else
    printed = log.read_text()
    code = os.waitstatus_to_exitcode(status)
    found = Outcome(way, code, time.perf_counter() - began, usage.ru_maxrss / 1024)
    if match := ANNOUNCED.search(printed):
        found.announced = float(match[1])
    if code:
        found.said = printed.strip().splitlines()[-1][:120] if printed.strip() else ""
    elif way.removeprefix("lora:") in TRAINED:
        lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        found.speed = lines[-1].get("tokens_per_second")
        done = subprocess.run(
            [sys.executable, "-c", CHECK, str(where), model], capture_output=True, text=True
        )
        if done.returncode:
            found.said = done.stderr.strip().splitlines()[-1][:120]
        else:
            told = json.loads(done.stdout.splitlines()[-1])
            found.gap, found.kept = told["gap"], f"{told['kind']}, {told['megabytes']:,.0f} MB"
            if not told["put"]:
                found.said = "no weight of the checkpoint was found in the saved folder"
    return found


def beside_peers(found: Outcome, model: str, folder: Path, steps: int) -> None:
    """The peer's tokens per second; of sampling ours, too, which the command does not say. PPO has
    no peer; `eval` samples as `sample`.
    """
    if found.way == "sample":
        found.speed, found.peer = (rate(who, model, folder, steps) for who in ("ours", "generate"))
    elif found.way.removeprefix("lora:") in TRAINED and not found.way.endswith("ppo"):
        found.peer = rate(found.way, model, folder, steps)


def rate(way: str, model: str, folder: Path, steps: int) -> float | None:
    """Tokens per second of real_peers.py; None, and the reason on standard error, where it
    fails.
    """
    words = [
        sys.executable,
        str(Path(__file__).with_name("real_peers.py")),
        way,
        model,
        str(folder),
        str(steps),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(f"{way}: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])["speed"]


def main() -> int:
    """Every way in turn, then the table; 1 where one did not end well."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    every = [*READ, *TRAINED, *(f"lora:{name}" for name in (*TRAINED, *READ))]
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, metavar="WAY", help=", ".join(every)
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="laurel alone")
    parser.add_argument(
        "--also",
        default="",
        help="further words of those that train, such as '--param_dtype bfloat16'",
    )
    args = parser.parse_args()
    make_rows(args.folder)
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    found = []
    for way in args.only:
        found.append(carried_out(way, model, args.folder, args.steps, args.also.split()))
        if args.peers and not found[-1].code:
            beside_peers(found[-1], model, args.folder, args.steps)
        print(" | ".join(found[-1].cells()), file=sys.stderr, flush=True)
    print(table(HEADER, [outcome.cells() for outcome in found]))
    return int(any(outcome.code or outcome.said for outcome in found))


if __name__ == "__main__":
    raise SystemExit(main())
