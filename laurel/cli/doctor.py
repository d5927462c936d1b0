"""`laurel doctor`: checks this installation, one line per check, each with a remedy."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from laurel.cli.options import add_hidden, read_command_line
from laurel.cli.train import check_algorithm
from laurel.core import machine
from laurel.core.config import TrainConfig, build_config
from laurel.core.errors import UsageError

OPTIONAL = ("vaderSentiment", "tensorboard", "wandb", "trackio", "vllm", "ray")
GIB = 1 << 30
SERVER_SECONDS = 120.0
"""How long a server may take for one answer: vLLM's first takes tens of seconds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ok, warn (it works, but) or bad (laurel cannot be used), and what to do."""

    name: str
    state: Literal["ok", "warn", "bad"]
    text: str
    fix: str = ""


def add_parser(subparsers: Any) -> None:
    """Register `doctor`; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "doctor",
        help="a verdict on this installation: versions, device, memory, a one-second self-test",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--model",
        help=(
            "a folder or hub name: which way it takes here (fast or general, why), how fast, in"
            " what memory"
        ),
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        metavar="URL",
        help="addresses of servers (`laurel serve`, vLLM): can training sample on them?",
    )
    parser.add_argument(
        "--algorithm",
        help=(
            "with --model: the memory that training it so takes, from config.json alone; any option"
            " of `laurel train` may follow"
        ),
    )
    parser.add_argument(
        "--device_memory",
        type=float,
        metavar="GB",
        help="with --algorithm: of a GPU that is not here",
    )
    add_hidden(parser, TrainConfig)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run every check, print it, and leave with 0 where laurel is usable, 1 where it is not."""
    options = read_command_line(
        argparse.Namespace(
            **{name: value for name, value in vars(args).items() if value is not None}
        ),
        TrainConfig,
    )
    if args.algorithm is not None:
        return print_memory_needs(args, options)
    options.pop("model", None)
    options.pop("engine", None)
    if further := sorted([*options, *(["device_memory"] if args.device_memory else [])]):
        what = f"`--{further[0]}` says how a model is trained, and no algorithm is named."
        raise UsageError(
            what, where="laurel doctor", fix="Add --algorithm, such as --algorithm grpo."
        )
    if args.engine:
        checks = check_servers([url for word in args.engine for url in word.split(",")])
    else:
        checks = check_named_model(args.model) if args.model else run_all_checks()
    found = list(checks)
    usable = all(check.state != "bad" for check in found)
    if args.json:
        print(
            json.dumps(
                {"usable": usable, "checks": [asdict(check) for check in found]},
                ensure_ascii=False,
                indent=1,
            )
        )
    else:
        if args.engine:
            verdict = ("training can sample there.", "training cannot sample there")
        else:
            verdict = ("laurel is ready.", "laurel cannot be used like this")
        _print_checks(found, usable, verdict=None if args.model else verdict)
    return 0 if usable else 1


def print_memory_needs(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Print the memory that a training takes, full and with adapters."""
    if args.model is None:
        raise UsageError(
            "the memory of which model?",
            where="laurel doctor --algorithm",
            fix="Add --model FOLDER.",
        )
    algorithm = check_algorithm(args.algorithm)
    if args.device_memory is not None and not args.device_memory > 0:
        raise UsageError("a device has more than 0 GB.", where="--device_memory")
    config = build_config(options, where="command line")
    from laurel.cli.doctor_fit import fit_lines

    lines = fit_lines(algorithm, config, args.device_memory)
    print(
        json.dumps({"lines": lines}, ensure_ascii=False, indent=1)
        if args.json
        else "\n".join(lines)
    )
    return 0


def run_all_checks() -> Iterator[Check]:
    """Every check, cheap ones first. One that breaks is reported as bad, never skipped."""
    yield from run_check_safely("python", check_python)
    yield from run_check_safely("packages", check_packages)
    yield from run_check_safely("optional", check_optional)
    for name, check in (
        ("device", check_device),
        ("threads", check_threads),
        ("precision", check_precision),
        ("sampler", check_sampler),
        ("memory", check_memory),
        ("disk", check_disk),
        ("sandbox", check_sandbox),
        ("self-test", check_training),
    ):
        yield from run_check_safely(name, check)


def check_named_model(model: str) -> Iterator[Check]:
    """What there is to say of one model; UsageError if it cannot be loaded."""
    from laurel.cli.doctor_model import model_lines

    for name, text in model_lines(model):
        yield Check(name, "ok", text)


def check_servers(urls: list[str]) -> Iterator[Check]:
    """What there is to say of servers that training could sample on."""
    from laurel.rollout.engine_doctor import survey

    for found in survey(urls, SERVER_SECONDS):
        yield Check(found.name, found.state, found.text, found.fix)


def run_check_safely(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """The findings of one check; whatever it raises becomes a finding."""
    try:
        return check()
    except Exception as error:  # a broken installation may raise anything: that is the finding
        return [
            Check(
                name,
                "bad",
                f"{type(error).__name__}: {error}",
                "Reinstall the package that the message names.",
            )
        ]


def check_python() -> list[Check]:
    """Python's version."""
    good = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [
        Check(
            "python",
            "ok" if good else "bad",
            text,
            "" if good else "laurel needs Python 3.11 or later.",
        )
    ]


def declared_requirements() -> list[tuple[str, str, bool]]:
    """(package, specifier, needed) that laurel-rl declares.

    From the installed package or the checkout's pyproject.toml.
    """
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("laurel-rl") or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads(
            (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        )["project"]
        extras = project.get("optional-dependencies", {})
        declared = [
            *project["dependencies"],
            *(
                f"{item.split(';')[0]}; extra == '{name}'"
                for name, items in extras.items()
                for item in items
            ),
        ]
    found = []
    for item in map(Requirement, declared):
        extra = "extra" in str(item.marker or "")
        if extra and item.name != "math-verify":
            continue
        if extra or item.marker is None or item.marker.evaluate():
            found.append((item.name, str(item.specifier), not extra))
    return list(dict.fromkeys(found))  # a package may belong to several extras


def check_packages() -> list[Check]:
    """Every package laurel declares: installed, and within the range it is tested with?"""
    from packaging.specifiers import SpecifierSet

    found = []
    for name, wanted, needed in declared_requirements():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            fix = f"pip install '{name}{wanted}'"
            found.append(
                Check(
                    name,
                    "bad" if needed else "warn",
                    "not installed",
                    fix if needed else f"{fix} for rewards on mathematics",
                )
            )
            continue
        inside = SpecifierSet(wanted).contains(version, prereleases=True)
        fix = "" if inside else f"pip install '{name}{wanted}'"
        found.append(
            Check(
                name,
                "ok" if inside else "warn",
                version if inside else f"{version}, tested with {wanted}",
                fix,
            )
        )
    return found


def check_optional() -> list[Check]:
    """Packages that some features use, in one line."""
    versions = []
    for name in OPTIONAL:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    return [Check("optional", "ok", ", ".join(versions))]


def check_device() -> list[Check]:
    """torch's build and the device `device=auto` would take."""
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        free, whole = torch.cuda.mem_get_info(0)
        text = (
            f"{card.name}, {free / GIB:.1f} of {whole / GIB:.1f} GiB free, torch"
            f" {torch.__version__}"
        )
        more = f"; {torch.cuda.device_count()} devices" if torch.cuda.device_count() > 1 else ""
        return [
            Check(
                "device",
                "ok" if free > GIB else "warn",
                text + more,
                "" if free > GIB else "Another process holds the GPU's memory.",
            )
        ]
    if torch.backends.mps.is_available():
        return [Check("device", "ok", f"Apple GPU (mps), torch {torch.__version__}")]
    gpu = shutil.which("nvidia-smi") is not None
    fix = (
        "There is an NVIDIA driver: install a CUDA build of torch to use the GPU."
        if gpu and torch.version.cuda is None
        else ""
    )
    fix = fix or (
        "torch has CUDA but finds no GPU: is the driver new enough, CUDA_VISIBLE_DEVICES set?"
        if gpu
        else ""
    )
    return [Check("device", "warn" if gpu else "ok", f"CPU, torch {torch.__version__}", fix)]


def check_threads() -> list[Check]:
    """CPU threads against the cores this process may use."""
    import torch

    cores, threads = machine.usable_cores(), torch.get_num_threads()
    setting = os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} of {cores:g} usable cores" + (
        f" (OMP_NUM_THREADS={setting})" if setting else ""
    )
    if threads > cores:
        return [
            Check(
                "threads",
                "warn",
                text,
                "More threads than cores is slow, very slow for small models: set"
                f" OMP_NUM_THREADS={max(1, int(cores))}.",
            )
        ]
    return [Check("threads", "ok", text)]


def check_precision() -> list[Check]:
    """Does the device compute in bfloat16, and what does dtype=auto mean here?"""
    import torch

    if torch.cuda.is_available():
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        text = (
            "bfloat16 in hardware: dtype=auto uses it"
            if good
            else "no bfloat16 in hardware: dtype=auto means float32"
        )
        return [Check("precision", "ok", text)]
    good = torch.cpu._is_avx512_bf16_supported()
    return [
        Check(
            "precision",
            "ok",
            "float32 on this device (dtype=auto)"
            + ("" if good else "; dtype=bfloat16 means float32, too"),
        )
    ]


def check_sampler() -> list[Check]:
    """Can the compact decoder be built? Without it a CPU samples about half as fast."""
    import torch

    from laurel.fast.kernels import load_library

    if torch.cuda.is_available() or load_library() is not None:
        return [
            Check(
                "sampler",
                "ok",
                (
                    "static buffers and CUDA graphs"
                    if torch.cuda.is_available()
                    else "compact decoder, compiled"
                ),
            )
        ]
    return [
        Check(
            "sampler",
            "warn",
            "static buffers, twice as slow as compiled",
            "Install g++: the compact decoder is built with it.",
        )
    ]


def check_memory() -> list[Check]:
    """Free main memory, within a container's limit."""
    memory = machine.memory_sizes()
    if memory is None:
        return [Check("memory", "ok", "unknown on this system")]
    free = memory[0]
    text = f"{free / GIB:.1f} GiB free"
    if free < GIB:
        return [
            Check(
                "memory",
                "warn",
                text,
                "Even small models need about 1 GiB: close something, or lower token_budget.",
            )
        ]
    return [
        Check(
            "memory",
            "ok",
            f"{text}: full training in float32 up to about {_parameters(free)} parameters (16 bytes"
            " each, half left for activations)",
        )
    ]


def check_disk() -> list[Check]:
    """Free space where runs are written by default."""
    free = shutil.disk_usage(Path.cwd()).free
    good = free > 2 * GIB
    fix = (
        ""
        if good
        else (
            "A checkpoint takes 12 bytes per parameter: free some space, or name another"
            " --output_dir."
        )
    )
    return [
        Check(
            "disk",
            "ok" if good else "warn",
            f"{free / GIB:.1f} GiB free in the current folder",
            fix,
        )
    ]


def check_sandbox() -> list[Check]:
    """How well programs that nobody has read are fenced in (rewards that run code)."""
    from laurel.core.sandbox import isolation, run_python

    outcome = run_python("print(6 * 7)", seconds=10)
    if not outcome.ok or outcome.stdout.strip() != "42":
        return [
            Check(
                "sandbox",
                "warn",
                f"a program did not run: {outcome.reason} {outcome.stderr[-200:]}".strip(),
                "Rewards that run code will fail.",
            )
        ]
    fences = isolation()
    kernel = [name for name in ("namespaces", "landlock", "seccomp") if fences[name]]
    if len(kernel) == 3:
        return [Check("sandbox", "ok", "limits, audit hook, namespaces, Landlock and seccomp")]
    text = f"limits, audit hook{''.join(f', {name}' for name in kernel)}"
    fix = (
        "Score strangers' code in a container or virtual machine: the kernel here does not fence"
        " everything."
    )
    return [Check("sandbox", "ok" if kernel else "warn", text, "" if kernel else fix)]


def check_training() -> list[Check]:
    """A tiny model on the device: finite gradients, and the loss falls after one step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from laurel.core.tensors import forked_rng

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with forked_rng():
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
        model = LlamaForCausalLM(shape).to(torch.device(device))  # pyright: ignore[reportArgumentType]
        ids = torch.randint(0, 32, (4, 16), device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        began = time.perf_counter()
        before = model(input_ids=ids, labels=ids).loss
        before.backward()
        finite = all(
            bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None
        )
        optimizer.step()
        after = float(model(input_ids=ids, labels=ids).loss.detach())
        seconds = time.perf_counter() - began
    text = (
        f"a tiny model trained one step on {device} in {seconds:.2f} s: loss"
        f" {float(before.detach()):.3f} -> {after:.3f}"
    )
    if not finite or not after < float(before.detach()):
        return [
            Check(
                "self-test",
                "bad",
                text,
                "The numbers are wrong: reinstall torch, or try --device cpu.",
            )
        ]
    slow = seconds > 5
    return [
        Check(
            "self-test",
            "warn" if slow else "ok",
            text,
            "Far slower than it should be: is the machine busy? See threads." if slow else "",
        )
    ]


def _parameters(free: int) -> str:
    count = free / 2 / 16
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"


def _print_checks(found: list[Check], usable: bool, *, verdict: tuple[str, str] | None) -> None:
    """One line per check, what to do under it, and a verdict in the end: the good or the bad."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    wide = max(len(check.name) for check in found)
    for check in found:
        style = {"ok": "green", "warn": "yellow", "bad": "bold red"}[check.state]
        console.print(
            Text.assemble((f"{check.state:<5}", style), f"{check.name:<{wide + 2}}", check.text)
        )
        if check.fix:
            console.print(Text(f"{'':<{wide + 7}}{check.fix}", style="dim"))
    warnings = sum(check.state == "warn" for check in found)
    if verdict is None:
        return
    if usable:
        text = (
            verdict[0]
            if not warnings
            else f"laurel is usable; {warnings} warning{'s' * (warnings > 1)} above."
        )
        console.print(Text(text, style="bold green" if not warnings else "bold yellow"))
    else:
        console.print(Text(f"{verdict[1]}: see the lines marked bad.", style="bold red"))
