"""What requests may hold: OpenAI's fields, and those of vLLM's that we have.

A field that is not here is refused by name, and so is a value that asks for what we do not do:
nothing that a user gives is dropped in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(max_length=1 << 20)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Text = Annotated[str, Field(max_length=1 << 24)]
MOST_CHOICES = 128
MOST_TOP = 20
Name = Annotated[str, Field(max_length=1024)]
AdapterName = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Top = Annotated[int, Field(ge=0, le=MOST_TOP)]
Length = Annotated[int, Field(ge=1, lt=2**31)]
Temperature = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Stops = Annotated[list[Stop], Field(max_length=16)]
Seeds = Annotated[list[Seed], Field(max_length=1 << 16)]
SomeTokens = Annotated[list[Token], Field(max_length=MOST_CHOICES)]
Nothing = Annotated[dict[str, float], Field(max_length=0)]
Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=4096)]


class Wire(BaseModel):
    """A body of which every field is known."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(Wire):
    """include_usage: one more chunk at the end with the numbers of tokens."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


class SamplingRequest(Wire):
    """What completions and chats have in common.

    seeds: one for each choice, of all prompts in turn, in place of `seed`, from which choice i has
    seed + i. Those from presence_penalty to logit_bias are taken with the value that changes
    nothing. vote, best_of: so many completions are drawn, and one is chosen; budget: tokens that
    may be drawn for it.
    """

    model: Name = ""
    n: Count = 1
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    seeds: Seeds | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = False
    return_token_ids: bool | None = False
    prompt_logprobs: Top | None = None
    logprob_token_ids: SomeTokens | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    user: str | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    repetition_penalty: Literal[1] | None = None
    min_p: Literal[0] | None = None
    min_tokens: Literal[0] | None = None
    ignore_eos: Literal[False] | None = None
    logit_bias: Nothing | None = None
    vote: Count | None = None
    best_of: Count | None = None
    budget: Length | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a completion."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`: one prompt or several, as text or as token ids."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = 16
    logprobs: Top | None = None
    suffix: None = None
    add_special_tokens: Literal[True] = True


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`: messages through the model's own template."""

    messages: Messages
    tools: Annotated[list[dict[str, Any]], Field(max_length=256)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    logprobs: bool | None = False
    top_logprobs: Top | None = None
    add_generation_prompt: Literal[True] = True


class ScoreRow(Wire):
    """A prompt and an answer, as texts or messages."""

    prompt: Text | Messages
    completion: Text | Messages


class ScoreRequest(Wire):
    """`POST /v1/score`: rows, or a prompt and its answers, or vLLM's two lists of texts."""

    model: Name = ""
    prompt: Text | Messages | None = None
    completions: Annotated[list[Text | Messages], Field(min_length=1, max_length=4096)] | None = (
        None
    )
    rows: Annotated[list[ScoreRow], Field(min_length=1, max_length=4096)] | None = None
    text_1: Text | Texts | None = None
    text_2: Text | Texts | None = None


class RpcRequest(Wire):
    """`POST /collective_rpc`: of vLLM's methods `reload_weights`."""

    method: Literal["reload_weights"]
    args: Annotated[list[Any], Field(max_length=0)] = []
    kwargs: Annotated[dict[str, Any], Field(max_length=4)] = {}
    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = None


class VersionRequest(Wire):
    """`POST /update_weight_version`."""

    new_version: Annotated[str, Field(min_length=1, max_length=256)]


class CheckRequest(Wire):
    """`POST /weight_checker`."""

    action: Literal["checksum", "compare"]
    baseline: Annotated[dict[str, str], Field(max_length=1 << 17)] | None = None
    model: Name = ""


class LoadAdapter(Wire):
    """`POST /v1/load_lora_adapter`."""

    lora_name: AdapterName
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapter(Wire):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: AdapterName
    lora_int_id: int | None = None


class TokenizeRequest(Wire):
    """`POST /tokenize`: a text, or messages through the template."""

    model: Name = ""
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Wire):
    """`POST /detokenize`."""

    model: Name = ""
    tokens: Tokens
