"""The scorer: a body that arrives whole, scores at the right token, and a folder that plain
transformers reads the same way.
"""

import json

import pytest
import torch
from arithmetic import agree, near, rounding
from processes import printed
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.core.sample import Group, Key, Sample
from laurel.model import scorer as scorers
from laurel.model.classifier import PAD, trained_labels
from laurel.model.policy import Policy, load_tokenizer
from laurel.model.scorer import Card, batches_by_budget, check_language_head, load_scorer
from laurel.model.scratch import STOP, char_tokenizer, save_scratch
from laurel.rollout.pack import pack

ROWS = [
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "what?", "completion": "no idea at all"},
    {"text": "x"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_scratch(path, seed=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    return str(path)


@pytest.fixture(scope="module")
def eos_padded(tmp_path_factory):
    """The same kind of model with a tokenizer that pads with its EOS, as many do."""
    path = tmp_path_factory.mktemp("padded")
    save_scratch(path, seed=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    tokenizer = char_tokenizer()
    tokenizer.pad_token = STOP
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**config, "pad_token_id": tokenizer.eos_token_id})
    )
    return str(path)


def packed(*rows):
    """(prompt ids, completion ids) as a Batch."""
    groups = [
        Group(
            str(n),
            {},
            (
                Sample(
                    Key("r", "s", str(n), 0, 0),
                    head,
                    tail,
                    (0.0,) * len(tail),
                    (True,) * len(tail),
                    1.0,
                    "eos",
                    "",
                    (),
                ),
            ),
        )
        for n, (head, tail) in enumerate(rows)
    ]
    return pack(groups)


def test_the_body_is_the_language_models_and_the_head_is_new_and_seeded(folder):
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = torch.random.get_rng_state()
    one, again, other = (load_scorer(folder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    body = one.model.model.state_dict()
    assert body.keys() == causal.model.state_dict().keys()
    assert all(
        torch.equal(body[name], weight) for name, weight in causal.model.state_dict().items()
    )
    assert torch.equal(one.model.score.weight, again.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    assert float(one.score(ROWS).abs().max()) < 0.5


def test_embeddings_stored_under_the_heads_name_arrive(tmp_path):
    """Tied weights may be saved as lm_head.weight alone; a plain AutoModelForSequenceClassification
    then starts from random ones.
    """
    from safetensors.torch import load_file, save_file

    save_scratch(tmp_path, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scorer = load_scorer(str(tmp_path))
    assert torch.equal(scorer.model.get_input_embeddings().weight, weights["lm_head.weight"])


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_stand_at_each_tokens_own_position(folder, labels):
    """scores(batch)[n, t] is what the row cut behind its token t would score; 0 where there is no
    token.
    """
    scorer = load_scorer(folder, num_labels=labels)
    rows = [((1, 5, 6), (7, 8, 2)), ((1, 9), (2,)), ((1, 5, 5, 5, 5), (4, 4))]
    batch = packed(*rows)
    found = scorer.scores(batch).detach()
    assert found.shape[:2] == (3, 3) and found.shape[2:] == (() if labels == 1 else (3,))
    for n, (head, tail) in enumerate(rows):
        for t in range(3):
            alone = (
                scorer.score([head + tail[: t + 1]])[0]
                if t < len(tail)
                else torch.zeros_like(found[n, t])
            )
            agree(found[n, t], alone)


def test_gradients_reach_body_and_head(folder):
    scorer = load_scorer(folder)
    scorer.scores(packed(((1, 5), (6, 2)))).sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.any())
        for name, p in scorer.trainable().items()
        if "embed" not in name
    )
    assert scorer.num_parameters == sum(p.numel() for p in scorer.trainable().values())


def test_score_does_not_depend_on_company(folder):
    scorer = load_scorer(folder)
    scorer.model.train()
    together = scorer.score(ROWS)
    assert scorer.model.training
    for budget in (1, 20, 8192):
        agree(scorer.score(list(reversed(ROWS)), token_budget=budget).flip(0), together)
    agree(scorer.score([scorer.encode(row) for row in ROWS]), together)
    assert scorer.score([]).shape == (0,) and not together.requires_grad
    with pytest.raises(UsageError, match="row 2"):
        scorer.score([(1, 2), ()])


def test_T05_T46_saved_folder_scores_the_same_in_plain_transformers(eos_padded, tmp_path):
    """Source pads with EOS: the scorer gets a padding token of its own, so that transformers too
    reads the EOS that ends a row.
    """
    scorer = load_scorer(eos_padded)
    assert scorer.tokenizer.pad_token == PAD and scorer.tokenizer.pad_token_id not in scorer.eos_ids
    scorer.save(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = [scorer.encode(row) for row in ROWS]
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)
    padded = tokenizer.pad(
        {"input_ids": [list(row) for row in ids]}, padding=True, return_tensors="pt"
    )
    assert bool((padded["attention_mask"][:, 0] == 1).all())
    with torch.no_grad():
        theirs = plain(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
        ).logits[:, 0]
    agree(theirs, scorer.score(ROWS))


def test_T05_ours_reads_by_length_where_padding_is_eos(eos_padded):
    """ids [5, 6, 2, 7, 8, 2 | 2, 2]: index 5, though the padding is EOS too; reading by ids would
    take index 4.
    """
    scorer = load_scorer(eos_padded)
    row = (5, 6, 2, 7, 8, 2)
    batch = packed((row[:2], row[2:]), ((1, 5, 5), (5, 5, 5, 5, 5)))
    batch = batch.replace(ids_NL=torch.where(batch.attention_NL, batch.ids_NL, 2))
    at_5, at_4 = scorer.score([row])[0], scorer.score([row[:5]])[0]
    assert abs(float(at_5 - at_4)) > 1e-3
    agree(scorer.scores(batch)[0, 3].detach(), at_5)


def in_a_new_process(folder, rows):
    """What the process prints that loads a saved scorer."""
    scorer = load_scorer(folder, device="cpu")
    print(
        json.dumps(
            [
                scorer.template,
                [scorer.encode(row) for row in rows],
                scorer.score(rows).tolist(),
                scorer.card.mean,
            ]
        )
    )


def test_T46_round_trip_in_a_new_process(folder, tmp_path):
    """Same template hash, same ids, same scores; the card comes back, and with it the cut that
    training used.
    """
    scorer = load_scorer(folder, device="cpu", seed=3)
    scorer.card = Card.of([1.0, 3.0], max_length=12)
    scorer.save(tmp_path)
    talk = [{"role": "user", "content": "hi <|stop|> é"}, {"role": "assistant", "content": ""}]
    rows = [*ROWS, {"prompt": talk[:1], "completion": talk[1:]}, {"messages": talk}]
    said = printed(in_a_new_process, str(tmp_path), rows, log=tmp_path / "said")
    template, ids, scores, mean = json.loads(said.splitlines()[-1])
    assert template == scorer.template and mean == 2.0
    assert ids == [list(scorer.encode(row)) for row in rows] and max(map(len, ids)) == 12
    assert scores == near(scorer.score(rows))


def test_three_classes_are_a_token_classifier(folder, tmp_path):
    scorer = load_scorer(folder, num_labels=3)
    scorer.save(tmp_path)
    assert load_scorer(str(tmp_path)).num_labels == 3
    plain = AutoModelForTokenClassification.from_pretrained(
        tmp_path
    ).train()  # no dropout between body and head, even in training
    ids = torch.tensor([[1, 5, 6, 2]])
    agree(plain(ids).logits[0, -1].detach(), scorer.score([(1, 5, 6, 2)])[0])


def test_save_proves_itself(folder, tmp_path, monkeypatch):
    """A head that is written otherwise than it was trained is noticed, by itself or beside
    adapters; the folder does not come.
    """
    scorer = load_scorer(folder)

    def spoiled(write, *how):
        with torch.no_grad():
            scorer.model.score.weight.mul_(1.01)
            write(*how)
            scorer.model.score.weight.div_(1.01)

    for write in (scorers.write_model, scorers.write_adapters):
        monkeypatch.setattr(scorers, write.__name__, lambda *how, write=write: spoiled(write, *how))
    for name in ("whole", "adapters"):
        with pytest.raises(LaurelError, match=rf"saved scorer differs .*{name}-unproven"):
            scorer.save(tmp_path / name)
        assert not (tmp_path / name).exists()
        scorer.adapt(TrainConfig(lora_r=2))


def test_a_trained_scorer_goes_on_from_where_it_was(folder, tmp_path):
    scorer = load_scorer(folder, seed=5)
    with torch.no_grad():
        for parameter in scorer.trainable().values():
            parameter.add_(0.01)
    scorer.save(tmp_path)
    agree(load_scorer(str(tmp_path), seed=0).score(ROWS), scorer.score(ROWS))
    with pytest.raises(UsageError, match="1 outputs"):
        load_scorer(str(tmp_path), num_labels=3)


@pytest.mark.parametrize("labels", [1, 3])
def test_other_architectures(tmp_path, labels):
    """GPT-2: absolute positions, a head of another name, and dropout in its token classifier."""
    tokenizer = char_tokenizer()
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = load_scorer(str(tmp_path), num_labels=labels)
    expected = scorer.score(ROWS)
    scorer.model.train()  # dropout of .1 in the body: scores are those of evaluation all the same
    assert torch.equal(scorer.score(ROWS), expected) and scorer.model.training
    scorer.save(tmp_path / "saved")
    agree(load_scorer(str(tmp_path / "saved")).score(ROWS), scorer.score(ROWS))


def test_adapters_are_merged(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    lora.save_pretrained(tmp_path)
    scorer, base = load_scorer(str(tmp_path)), load_scorer(folder)
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        ours, theirs = (
            scorer.model.model(ids).last_hidden_state,
            lora.eval().get_base_model().model(ids).last_hidden_state,
        )
        agree(ours, theirs, units=1024)
        assert float((base.model.model(ids).last_hidden_state - ours).abs().max()) > 1e-2


def test_what_is_no_scorer_is_refused(folder, tmp_path):
    tokenizer = char_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="linear head"):
        load_scorer(str(tmp_path))
    with pytest.raises(UsageError, match="no such model folder"):
        load_scorer(str(tmp_path / "nothing"))


def test_card():
    assert Card.of([1.0, 3.0]) == Card(2.0, 1.0, 2)
    assert Card.of([0.1] * 30).std == 1.0  # float noise is no spread (T25)
    for bad in ([], [float("nan")]):
        with pytest.raises(UsageError):
            Card.of(bad)


def test_budget_keeps_every_row_once():
    lengths = [3, 9, 1, 4, 4]
    chunks = batches_by_budget(lengths, 8)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(5))
    assert all(
        len(chunk) == 1 or max(lengths[i] for i in chunk) * len(chunk) <= 8 for chunk in chunks
    )


def test_a_real_model(shared, tmp_path):
    """tinystories-656k keeps its tied embeddings under the head's name; its scorer has the language
    model's own hidden states.
    """
    name = str(shared("models/tinystories-656k"))
    scorer, causal = (
        load_scorer(name),
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval(),
    )
    ids = torch.tensor([scorer.encode({"text": "Once upon a time there was a dog."})])
    with torch.no_grad():
        hidden = causal.model(ids).last_hidden_state
        agree(scorer.hidden(ids, torch.ones_like(ids).bool()), hidden)
    scorer.save(tmp_path)
    assert load_scorer(str(tmp_path)).score(ROWS).tolist() == near(scorer.score(ROWS))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A language model whose head has weights of its own."""
    path = tmp_path_factory.mktemp("untied")
    tokenizer = char_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        tie_word_embeddings=False,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


BATCH = (((1, 5, 6), (7, 8, 2)), ((1, 9), (2,)), ((1, 5, 5, 5, 5), (4, 4)))


@pytest.mark.parametrize("kind", ["folder", "eos_padded", "untied"])
def test_the_language_head_says_what_the_language_model_said(kind, request):
    """logp of the kept head = Policy.logp of the causal model, from the pass that gives the scores;
    the scores are as without it.
    """
    name = request.getfixturevalue(kind)
    scorer, bare = load_scorer(name, device="cpu", language=True), load_scorer(name, device="cpu")
    batch, calls = packed(*BATCH), []
    scorer.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    seen = scorer.forward(batch, ["score_NT", "logp_NT"])
    assert len(calls) == 1
    torch.testing.assert_close(seen.score_NT, bare.scores(batch))
    causal = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    expected = Policy(causal, load_tokenizer(name)).logp(batch).logp
    loose = (
        2e-2 if kind == "eos_padded" else rounding(expected)
    )  # there the vocabulary has grown by one token, which the head may say, too
    torch.testing.assert_close(seen.logp_NT, expected, atol=loose, rtol=0)


def test_a_tied_head_is_trained_once_and_an_untied_one_too(folder, eos_padded, untied):
    for name, own in ((folder, set()), (eos_padded, set()), (untied, {"language.weight"})):
        scorer = load_scorer(name, device="cpu", language=True)
        moved = scorer.trainable()
        assert {n for n in moved if n.startswith("language.")} == own
        assert len({id(p) for p in moved.values()}) == len(moved)
        scorer.logp(
            packed(*BATCH), scorer.hidden(*[packed(*BATCH).ids_NL, packed(*BATCH).attention_NL])
        ).sum().backward()
        head = moved["language.weight"] if own else scorer.model.get_input_embeddings().weight
        assert (
            float(head.grad.abs().sum()) > 0
            and float(scorer.model.get_input_embeddings().weight.grad.abs().sum()) > 0
        )


def test_the_language_head_is_not_saved(untied, tmp_path):
    scorer = load_scorer(untied, device="cpu", language=True)
    scorer.save(tmp_path)
    again, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()) and not any(
        "lm_head" in name for name, _ in again.named_parameters()
    )
    assert trained_labels(str(tmp_path)) == 1
    with pytest.raises(UsageError, match="needs a language model's head"):
        check_language_head(str(tmp_path))
    with pytest.raises(UsageError, match="keeps no language-model head"):
        load_scorer(str(tmp_path), language=True)
    check_language_head(untied)


def test_a_body_alone_has_no_language_head(folder, tmp_path):
    """transformers would put a random one there, with one line of warning."""
    AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="LlamaModel has none"):
        check_language_head(str(tmp_path))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "untied"])
def test_adapters_train_the_body_and_are_saved(kind, labels, request, tmp_path):
    """Scores do not change when adapters come; adapters and head move, nothing else; the folder is
    plain and scores the same.
    """
    torch.manual_seed(0)  # adapters and head are drawn
    scorer = load_scorer(
        request.getfixturevalue(kind), num_labels=labels, device="cpu", language=True
    )
    before, frozen = (
        scorer.score(ROWS),
        {name: p.detach().clone() for name, p in scorer.model.base_model.named_parameters()},
    )
    scorer.adapt(TrainConfig(lora_r=2))
    torch.testing.assert_close(scorer.score(ROWS), before)
    moved = scorer.trainable()
    assert moved and all(
        "lora_" in name or name.split(".")[0] in ("score", "classifier") for name in moved
    ), sorted(moved)
    assert len({name.split(".")[0] for name in moved}) == 2
    optimizer = torch.optim.Adam(moved.values(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        seen = scorer.forward(packed(*BATCH), ["score_NT", "logp_NT"])
        (seen.score_NT.square().sum() - seen.logp_NT.mean()).backward()
        optimizer.step()
    trained = scorer.score(ROWS)
    assert float((trained - before).abs().max()) > 1e-3
    now = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): p
        for name, p in scorer.model.base_model.named_parameters()
    }
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    for merge in (False, True):  # into one folder: neither may be taken for the other
        scorer.save(tmp_path, merge=merge)
        assert (
            (tmp_path / "adapter_config.json").exists()
            != merge
            == (tmp_path / "config.json").exists()
        )
        again = load_scorer(str(tmp_path), device="cpu")
        agree(again.score(ROWS), trained)
        assert not any("lora_" in name for name in again.trainable())
    torch.testing.assert_close(
        scorer.score(ROWS), trained
    )  # saving left the adapters where they were


def test_scores_at_positions(folder):
    """score_at reads where it is told to; in any order of lengths, like the whole rows."""
    scorer = load_scorer(folder, num_labels=3, device="cpu")
    rows = [((1, 5, 6, 7), (1, 3)), ((1, 9), (1,)), ((1, 5, 5, 5, 5, 4), (0, 2, 5))]
    for budget in (8192, 7):
        found = scorer.score_at(rows, token_budget=budget)
        for (ids, places), score in zip(rows, found, strict=True):
            expected = torch.stack([scorer.score([ids[: place + 1]])[0] for place in places])
            agree(score, expected)
