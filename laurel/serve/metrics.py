"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the parts of a histogram, in seconds."""


@dataclass
class Histogram:
    """How many durations lie below each bound, their number and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    number: int = 0
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.number += 1
        self.total += seconds
        for i, bound in enumerate(BOUNDS):
            self.counts[i] += seconds <= bound

    def lines(self, name: str, about: str) -> Iterator[str]:
        """In Prometheus's text format."""
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} histogram"
        for bound, count in zip(BOUNDS, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.number}'
        yield f"{name}_sum {self.total!r}"
        yield f"{name}_count {self.number}"


@dataclass
class ServerMetrics:
    """Counters since the start. finished: completions by why they ended."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    refused: int = 0
    reloads: int = 0
    finished: Counter[str] = field(default_factory=Counter[str])
    first_token: Histogram = field(default_factory=Histogram)
    whole_request: Histogram = field(default_factory=Histogram)

    def text(self, waiting: int, running: int) -> str:
        """All of them in Prometheus's text format, with how many completions wait and run now."""
        lines = [
            *number("num_requests_waiting", "gauge", "completions that wait", waiting),
            *number("num_requests_running", "gauge", "completions that are drawn", running),
            *number("engine_steps_total", "counter", "passes of the sampler", self.steps),
            *number("prompt_tokens_total", "counter", "prompt tokens read", self.prompt_tokens),
            *number("generation_tokens_total", "counter", "tokens drawn", self.generated_tokens),
            *number("requests_refused_total", "counter", "requests refused", self.refused),
            *number("weight_reloads_total", "counter", "new weights taken", self.reloads),
            "# HELP laurel:request_success_total completions by why they ended",
            "# TYPE laurel:request_success_total counter",
        ]
        for reason, count in sorted(self.finished.items()):
            lines.append(f'laurel:request_success_total{{finished_reason="{reason}"}} {count}')
        lines += self.first_token.lines(
            "laurel:time_to_first_token_seconds", "from a request to its first token"
        )
        lines += self.whole_request.lines(
            "laurel:e2e_request_latency_seconds", "from a request to its end"
        )
        return "\n".join(lines) + "\n"


def number(name: str, kind: str, about: str, value: int) -> list[str]:
    """One number in Prometheus's text format."""
    whole = f"laurel:{name}"
    return [f"# HELP {whole} {about}", f"# TYPE {whole} {kind}", f"{whole} {value}"]
