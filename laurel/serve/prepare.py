"""From the body of a request to the jobs of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from laurel.core.errors import LaurelError
from laurel.fast.decode import Job, SamplingOptions, TokenLogprobs, listed_logprobs
from laurel.model.chat import encode_prompt
from laurel.model.policy import Policy
from laurel.serve.engine import Limits, Refused
from laurel.serve.schemas import ChatRequest, CompletionRequest, SamplingRequest

Ids = tuple[int, ...]
AT_ONCE = 1 << 26
"""Logits of a prompt that are made at once, at most."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request that can be sampled: choice i belongs to prompt i // n.

    logprobs: so many of the likeliest tokens are told with each; None: nothing of
    log-probabilities is.
    """

    body: SamplingRequest
    prompts: list[Ids]
    jobs: list[Job]
    logprobs: int | None
    max_tokens: int

    @property
    def count(self) -> int:
        """The number of choices."""
        return len(self.prompts) * self.body.n


def prepare_completions(body: CompletionRequest, policy: Policy, limits: Limits) -> PreparedRequest:
    """A request for completions, checked."""
    given: Any = body.prompt
    several = isinstance(given, list) and isinstance(given[0], str | list)
    prompts = [encode_ids(policy, one) for one in (given if several else [given])]
    return prepare_prompts(body, prompts, policy, limits, body.logprobs, body.max_tokens)


def prepare_chat(body: ChatRequest, policy: Policy, limits: Limits) -> PreparedRequest:
    """A request for the next turn of a conversation, checked."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise Refused("max_tokens and max_completion_tokens differ.", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused("`top_logprobs` needs `logprobs`: true.", param="top_logprobs")
    try:
        tools = None if body.tool_choice == "none" else body.tools
        ids = encode_prompt(policy.tokenizer, cast("Any", body.messages), tools=tools)
    except LaurelError as error:
        raise Refused(str(error), param="messages") from error
    except Exception as error:
        # a template raises what it likes: it is the messages that it cannot show
        told = f"{type(error).__name__}: {error!s:.300}"
        what = f"the model's template refuses these messages: {told}"
        raise Refused(what, param="messages") from error
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return prepare_prompts(body, [ids], policy, limits, logprobs, tokens)


def encode_ids(policy: Policy, prompt: str | list[int]) -> Ids:
    """A prompt as ids of the model."""
    if isinstance(prompt, str):
        try:
            ids = encode_prompt(policy.tokenizer, prompt)
        except (LaurelError, UnicodeError) as error:
            what = f"the prompt cannot be encoded: {error!s:.300}"
            raise Refused(what, param="prompt") from error
    else:
        ids = tuple(prompt)
    if not ids:
        raise Refused("a prompt without a token has nothing to go on from.", param="prompt")
    check_vocabulary(policy, ids, "prompt")
    return ids


def vocabulary_size(policy: Policy) -> int:
    """The number of tokens that the model has an embedding for."""
    size: int = policy.causal.get_input_embeddings().weight.shape[0]
    return size


def check_vocabulary(policy: Policy, ids: Sequence[int], param: str) -> None:
    """Refused where a token is none of the model's."""
    size = vocabulary_size(policy)
    if max(ids, default=0) >= size:
        raise Refused(f"token {max(ids)} is not one of the model's {size}.", param=param)


def prepare_prompts(
    body: SamplingRequest,
    prompts: list[Ids],
    policy: Policy,
    limits: Limits,
    logprobs: int | None,
    max_tokens: int | None,
) -> PreparedRequest:
    """A request with its prompts as ids: limits, seeds and options are checked."""
    check_together(body, len(prompts), logprobs)
    room = min(limits.length - len(ids) for ids in prompts)
    if room < (max_tokens if max_tokens is not None else 1):
        longest = max(map(len, prompts))
        raise Refused(
            f"a prompt of {longest} tokens and {max_tokens or 1} more are over the"
            f" {limits.length} of this server.",
            param="max_tokens",
        )
    tokens = room if max_tokens is None else max_tokens
    if not tokens and not (body.echo or body.prompt_logprobs is not None):
        raise Refused("no token is asked for: max_tokens 0 is for echo.", param="max_tokens")
    check_vocabulary(policy, body.logprob_token_ids or (), "logprob_token_ids")
    options = options_of(body, logprobs)
    seeds = seeds_of(body, len(prompts) * body.n)
    jobs = list[Job]()
    for i, prompt in enumerate(prompts):
        own = seeds[i * body.n : (i + 1) * body.n]
        jobs += split_jobs(prompt, own if tokens else [], tokens, options, limits.places)
    return PreparedRequest(body, prompts, jobs, logprobs, tokens)


def split_jobs(
    prompt: Ids, seeds: Sequence[int], tokens: int, options: SamplingOptions, places: int
) -> list[Job]:
    """The completions of a prompt; one with more than there are places is read more than once."""
    parts = [tuple(seeds[start : start + places]) for start in range(0, len(seeds), places)]
    return [Job(prompt, some, (tokens,) * len(some), options) for some in parts]


def check_together(body: SamplingRequest, prompts: int, logprobs: int | None) -> None:
    """Refused where two fields do not go together."""
    if body.stream_options is not None and not body.stream:
        raise Refused("`stream_options` needs `stream`.", param="stream_options")
    if body.stream and (body.echo or body.prompt_logprobs is not None):
        raise Refused("`echo` and `prompt_logprobs` do not go with `stream`.", param="stream")
    if body.logprob_token_ids and logprobs is None:
        raise Refused("`logprob_token_ids` needs `logprobs`.", param="logprob_token_ids")
    if body.seeds is not None and len(body.seeds) != prompts * body.n:
        what = f"{len(body.seeds)} seeds for {prompts} prompts with {body.n} choices each."
        raise Refused(what, param="seeds")
    if body.seeds is not None and body.seed is not None:
        raise Refused("give `seed` or `seeds`.", param="seeds")


def options_of(body: SamplingRequest, logprobs: int | None) -> SamplingOptions:
    """How tokens are drawn; what is not given changes nothing."""
    return SamplingOptions(
        1.0 if body.temperature is None else body.temperature,
        max(body.top_k or 0, 0),
        1.0 if body.top_p is None else body.top_p,
        body.stops,
        logprobs or 0,
        tuple(dict.fromkeys(body.logprob_token_ids or ())),
    )


def seeds_of(body: SamplingRequest, count: int) -> list[int]:
    """A seed for each choice, unsigned with 64 bits; without one chosen by the system."""
    if body.seeds is not None:
        return [seed % 2**64 for seed in body.seeds]
    first = secrets.randbits(64) if body.seed is None else body.seed
    return [(first + i) % 2**64 for i in range(count)]


@torch.no_grad()
def score_prompt(policy: Policy, ids: Ids, top: int) -> list[tuple[float, TokenLogprobs]]:
    """Of each token behind the first its log-probability, and the likeliest in its place.

    At temperature 1: nobody drew them.
    """
    row = torch.tensor([ids], device=policy.device)
    whole = policy.causal(input_ids=row).logits[0] if policy.whole_logits else None
    hidden = policy.body(row).last_hidden_state[0] if whole is None else row
    found = list[tuple[float, TokenLogprobs]]()
    step = max(1, AT_ONCE // vocabulary_size(policy))
    options = SamplingOptions(top=top)
    for start in range(0, len(ids) - 1, step):
        end = min(start + step, len(ids) - 1)
        logits = policy.head(hidden[start:end]) if whole is None else whole[start:end]
        logp_NV = logits.float().log_softmax(1)
        following = row[0, start + 1 : end + 1]
        own = logp_NV.gather(1, following[:, None])[:, 0].tolist()
        found += zip(own, listed_logprobs(logp_NV, options), strict=True)
    return found
