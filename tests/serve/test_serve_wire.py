"""The wire as OpenAI's own client speaks it: tokens, log-probabilities, streams, errors."""

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
import torch
from serving import running, tiny

from laurel.core.sample import Draw
from laurel.model.policy import Policy
from laurel.rollout.sampler import Sampler, sample

PROMPTS = [(4, 5, 6), (7,), (8, 9, 10, 11, 12, 13, 14), (5, 5)]


@pytest.fixture(scope="module")
def llama():
    with running(tiny(), places=16) as served:
        yield served


@pytest.fixture(scope="module")
def gpt2():
    with running(tiny("gpt2"), places=8) as served:
        yield served


@pytest.fixture
def openai_client(llama):
    return openai.OpenAI(base_url=f"{llama.url}/v1", api_key="none", max_retries=0)


def ask(served, **body):
    answer = served.client.post("/v1/completions", json={"model": "m", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def refused(served, path="/v1/completions", status=400, **body):
    answer = served.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"] and error["type"]
    return error["message"]


@pytest.mark.parametrize("which", ["llama", "gpt2"])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}])
def test_tokens_are_those_of_the_sampler(which, how, request):
    """Prompts of different lengths in one request, one seed a choice: ids, log-probabilities and
    ends are those of `laurel sample`, to the bit on the compact path.
    """
    served = request.getfixturevalue(which)
    seeds = [2**64 - 1 - n for n in range(4 * 5)]
    wanted = sample(served.policy, PROMPTS, seeds=seeds, max_completion_length=20, **how)
    found = ask(
        served,
        prompt=[list(ids) for ids in PROMPTS],
        n=5,
        seeds=seeds,
        max_tokens=20,
        logprobs=0,
        return_token_ids=True,
        **how,
    )
    assert [tuple(one["token_ids"]) for one in found] == [one.ids for one in wanted]
    assert [one["finish_reason_detail"] for one in found] == [one.finish for one in wanted]
    logps = [one["logprobs"]["token_logprobs"] for one in found]
    if which == "llama":
        assert logps == [list(one.logps) for one in wanted]
    else:
        for some, one in zip(logps, wanted, strict=True):
            assert some == pytest.approx(one.logps, abs=1e-4)
    for one in found:
        whole = {"version": "0", "start": 0, "end": len(one["token_ids"])}
        assert one["weight_versions"] == [whole]


def test_a_request_depends_on_no_neighbour():
    """Alone, or beside forty others that come and go, wide enough for products of two kinds."""
    with running(tiny(hidden=512), places=48) as served:
        body = {"prompt": [4, 5, 6], "seed": 7, "max_tokens": 24, "logprobs": 0}
        alone = ask(served, **body, return_token_ids=True)[0]

        def other(n):
            prompt = [4 + n % 9] * (1 + n % 5)
            ask(served, prompt=prompt, seed=n, max_tokens=5 + n, n=1 + n % 3)

        with ThreadPoolExecutor(24) as pool:
            others = [pool.submit(other, n) for n in range(40)]
            beside = [pool.submit(ask, served, **body, return_token_ids=True) for _ in range(6)]
            for one in beside:
                assert one.result()[0] == alone
            for one in others:
                one.result()


def test_completions_by_the_official_client(openai_client, llama):
    """Text, several choices, log-probabilities of the likeliest, a prompt that is told back."""
    found = openai_client.completions.create(
        model="m", prompt="12+34=", n=3, seed=5, max_tokens=12, logprobs=4, stop=["7", "q"]
    )
    assert [one.index for one in found.choices] == [0, 1, 2]
    assert found.usage.prompt_tokens == 7
    for one in found.choices:
        assert "7" not in one.text and "q" not in one.text
        assert one.finish_reason in ("stop", "length")
        for logp, top in zip(one.logprobs.token_logprobs, one.logprobs.top_logprobs, strict=True):
            assert len(top) in (4, 5)
            assert max(top.values()) >= logp
    scored = openai_client.completions.create(
        model="m", prompt="12+34=", max_tokens=0, echo=True, logprobs=0
    ).choices[0]
    ids = torch.tensor([llama.policy.tokenizer("12+34=").input_ids])
    logits = llama.policy.model(ids).logits[0, :-1]
    wanted = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert scored.text == "12+34="


def test_chats_by_the_official_client(openai_client, llama):
    """The model's own template; tokens with bytes; `stop` cuts the text."""
    messages = [{"role": "user", "content": "1+2="}]
    found = openai_client.chat.completions.create(
        model="m", messages=messages, seed=1, max_tokens=9, logprobs=True, top_logprobs=2, n=2
    )
    for one in found.choices:
        assert one.message.role == "assistant"
        assert [len(token.top_logprobs) for token in one.logprobs.content] == [2] * len(
            one.logprobs.content
        )
    template = llama.policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = template["input_ids"] if hasattr(template, "keys") else template
    assert found.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("stop", [None, ["7", "12"]])
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_says_what_the_whole_answer_says(openai_client, stop, chat):
    """Pieces put together are the text and the tokens of the same request without `stream`."""
    body = {"model": "m", "seed": 11, "max_tokens": 40, "n": 3, "stop": stop}
    body |= {"logprobs": True} if chat else {"logprobs": 0}
    extra = {"return_token_ids": True}
    if chat:
        create = openai_client.chat.completions.create
        body["messages"] = [{"role": "user", "content": "5+6="}]
    else:
        create = openai_client.completions.create
        body["prompt"] = "5+6="
    whole = create(**body, extra_body=extra)
    texts, ids, ends = ["", "", ""], [[], [], []], {}
    stream = create(**body, extra_body=extra, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        for one in chunk.choices:
            texts[one.index] += (one.delta.content or "") if chat else one.text
            ids[one.index] += getattr(one, "token_ids", None) or []
            if one.finish_reason:
                ends[one.index] = one.finish_reason
        usage = chunk.usage
    assert usage.total_tokens == whole.usage.total_tokens
    for i, one in enumerate(whole.choices):
        assert texts[i] == (one.message.content if chat else one.text)
        assert ids[i] == one.token_ids
        assert ends[i] == one.finish_reason


def test_log_probabilities_of_named_tokens(llama):
    """`logprob_token_ids`, `prompt_logprobs`: those of the model on the row."""
    found = ask(
        llama,
        prompt=[4, 5, 6],
        seed=3,
        max_tokens=5,
        logprobs=0,
        logprob_token_ids=[9, 10],
        prompt_logprobs=2,
        return_token_ids=True,
    )[0]
    row = torch.tensor([[4, 5, 6, *found["token_ids"]]])
    logp = llama.policy.model(row).logits[0].detach().log_softmax(-1)
    names = [llama.policy.tokenizer.decode([i]) for i in (9, 10)]
    for t, top in enumerate(found["logprobs"]["top_logprobs"]):
        for name, i in zip(names, (9, 10), strict=True):
            assert top[name] == pytest.approx(float(logp[2 + t, i]), abs=1e-4)
    first, *rest = found["prompt_logprobs"]
    assert first is None
    for t, (told, own) in enumerate(zip(rest, (5, 6), strict=True)):
        assert told[str(own)]["logprob"] == pytest.approx(float(logp[t, own]), abs=1e-4)
        assert len(told) in (2, 3)


def test_prompts_are_told_with_each_of_their_choices(llama):
    """Two prompts with two choices each: the log-probabilities of a prompt are its own."""
    body = {"max_tokens": 1, "prompt_logprobs": 0, "seed": 3}
    found = ask(llama, prompt=[[4, 5, 6], [7, 8]], n=2, **body)
    alone = [ask(llama, prompt=one, **body)[0]["prompt_logprobs"] for one in ([4, 5, 6], [7, 8])]
    assert [one["prompt_logprobs"] for one in found] == [alone[0]] * 2 + [alone[1]] * 2


def test_what_is_left_out_has_a_log_probability_that_json_can_hold(llama):
    """top_k 1 leaves one token: all others are at -9999."""
    answer = ask(llama, prompt=[4, 5], top_k=1, max_tokens=2, logprobs=3)[0]
    for top in answer["logprobs"]["top_logprobs"]:
        values = sorted(top.values())
        assert values[-1] == pytest.approx(0, abs=1e-6) and values[0] == -9999.0
    assert not math.isinf(json.loads(json.dumps(values))[0])


def test_errors_name_the_field(llama, openai_client):
    """In OpenAI's shape, with what to do; nothing that is given is dropped in silence."""
    assert "is not a field" in refused(llama, model="m", prompt="a", fuo=1)
    assert "`n`" in refused(llama, model="m", prompt="a", n=0)
    assert "no model `x`; there is m" in refused(llama, model="x", prompt="a", status=404)
    assert "over the 256" in refused(llama, model="m", prompt=[4] * 200, max_tokens=57)
    assert "token 9999999" in refused(llama, model="m", prompt=[9_999_999])
    assert "2 seeds for 1 prompts" in refused(llama, model="m", prompt="a", seeds=[1, 2])
    assert "presence_penalty" in refused(llama, model="m", prompt="a", presence_penalty=0.5)
    assert "needs `logprobs`" in refused(llama, model="m", prompt="a", logprob_token_ids=[4])
    chats = "/v1/chat/completions"
    assert "does not render" in refused(llama, chats, messages=[{"role": "robot", "content": 1}])
    assert "no scorer" in refused(llama, "/v1/score", status=404, prompt="a", completions=["b"])
    assert llama.client.get("/v1/completions").status_code == 405
    assert llama.client.get("/nowhere").json()["error"]["type"] == "not_found_error"
    with pytest.raises(openai.BadRequestError, match="not a field"):
        openai_client.completions.create(model="m", prompt="a", extra_body={"fuo": 1})
    with pytest.raises(openai.NotFoundError):
        openai_client.completions.create(model="other", prompt="a")


def test_names_and_numbers(llama):
    """/v1/models, /version, /health, /metrics, /tokenize and /detokenize."""
    assert [one["id"] for one in llama.client.get("/v1/models").json()["data"]] == ["m"]
    told = llama.client.get("/version").json()
    assert told["engine"] == "laurel" and told["exact"] is True
    assert llama.client.get("/health").status_code == 200
    before = llama.engine.metrics.generated_tokens
    ask(llama, prompt="1+1=", seed=1, max_tokens=3, n=2)
    text = llama.client.get("/metrics").text
    drawn = llama.engine.metrics.generated_tokens
    assert f"laurel:generation_tokens_total {drawn}\n" in text and drawn > before
    assert "laurel:time_to_first_token_seconds_count" in text
    ids = llama.client.post("/tokenize", json={"prompt": "1+1="}).json()["tokens"]
    assert tuple(ids) == tuple(llama.policy.tokenizer("1+1=").input_ids)
    back = llama.client.post("/detokenize", json={"tokens": ids[1:]}).json()["prompt"]
    assert back == "1+1="


def test_a_key_is_asked_for_and_never_told(caplog):
    """Without it 401, also for one of another length; health is open; no log holds it."""
    with running(tiny(), key="secret-key") as served:
        assert served.client.get("/v1/models").status_code == 200
        for given in ("", "Bearer secret", "Basic secret-key"):
            header = {"Authorization": given}
            answer = served.client.get("/v1/models", headers=header)
            assert answer.status_code == 401 and "secret" not in answer.text
        assert served.client.get("/health", headers={"Authorization": ""}).status_code == 200
    assert "secret-key" not in caplog.text


def test_pages_of_other_sites_are_refused(llama):
    """A name that points here, and a page elsewhere that posts."""
    assert llama.client.get("/v1/models", headers={"Host": "evil.test"}).status_code == 421
    answer = llama.client.post("/pause", headers={"Origin": "http://evil.test"})
    assert answer.status_code == 403
    assert not llama.engine.paused


def test_the_generator_that_the_trainer_uses(llama):
    """`Sampler.generate` with seeds of a step, and the same through the wire."""
    draw = Draw("run", 3, 0, 4, 16, 1.0)
    seeds = draw.seeds_of(["a", "b", "c", "d"])
    wanted = Sampler(llama.policy).generate(PROMPTS, replace(draw, seeds=seeds))
    found = [
        one
        for i, ids in enumerate(PROMPTS)
        for one in ask(
            llama,
            prompt=list(ids),
            n=4,
            seeds=list(seeds[4 * i : 4 * i + 4]),
            max_tokens=16,
            logprobs=0,
            return_token_ids=True,
        )
    ]
    assert [(tuple(x["token_ids"]), tuple(x["logprobs"]["token_logprobs"])) for x in found] == [
        (one.ids, one.logps) for one in wanted
    ]


def test_distribution_by_chi_square_through_the_wire():
    """Two tokens of 40,000 completions, asked for in 20 requests, against the enumerated
    probabilities at temperature .7: chi-square within 5 sigma.
    """
    policy = tiny()
    policy.model.resize_token_embeddings(7)
    policy.model.generation_config.eos_token_id = 6
    policy.tokenizer.eos_token_id = 6
    counts = Counter[tuple[int, ...]]()
    with running(Policy(policy.model, policy.tokenizer), places=512) as served:
        for part in range(20):
            seeds = list(range(2000 * part, 2000 * (part + 1)))
            body = {"prompt": [[1, 2]] * 16, "n": 125, "seeds": seeds, "max_tokens": 2}
            for one in ask(served, **body, temperature=0.7, return_token_ids=True):
                counts[tuple(one["token_ids"])] += 1
    rows = torch.tensor([[1, 2, a] for a in range(7)])
    with torch.no_grad():
        logits = policy.model(rows).logits.double() / 0.7
    first, second = logits[0, 1].softmax(-1), logits[:, 2].softmax(-1)
    expected = {(a, b): float(first[a] * second[a, b]) for a in range(6) for b in range(7)}
    expected[(6,)] = float(first[6])
    chi = sum((counts[k] - 40_000 * p) ** 2 / (40_000 * p) for k, p in expected.items())
    freedom = len(expected) - 1
    assert sum(counts.values()) == 40_000 and counts.keys() <= expected.keys()
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5, chi
