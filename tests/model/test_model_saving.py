"""What a training leaves: tensors merged one by one, adapters that PEFT loads, no second copy, the
base's precision, and a proof.
"""

import copy
import json
import weakref

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_model_weights import FAMILIES, make, save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.fast.logprob import rounding_tolerance
from laurel.model import readback, saving, written
from laurel.model.adapters import merge_adapters
from laurel.model.classifier import trained_labels
from laurel.model.critic import own_critic
from laurel.model.policy import Policy, load_causal, load_policy
from laurel.model.scorer import check_language_head, load_scorer
from laurel.model.scratch import char_tokenizer
from laurel.model.written import write_model
from laurel.reward.learned import learned

IDS = torch.tensor([[5, 2, 6, 7, 40]])
ROWS = [(5, 2, 6, 7, 40), (4, 4, 9)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family, dtype) -> a folder, written once; never to be changed."""
    made = {}

    def find(family="llama", dtype=torch.float32):
        if (family, dtype) not in made:
            made[family, dtype] = save(make(family).to(dtype), tmp_path_factory.mktemp(f"{family}"))
        return made[family, dtype]

    return find


def lora(folder, *names, **more):
    """A configuration with adapters on modules of that name."""
    return TrainConfig(
        model=folder,
        device="cpu",
        use_peft=True,
        lora_r=2,
        lora_target_modules=list(names) or None,
        **more,
    )


@torch.no_grad()
def shake(model, size=0.1):
    """Move everything that is trained."""
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=noise) * size)


@torch.no_grad()
def said(model):
    """Logits."""
    return model.eval()(IDS).logits


HOW = {
    "none": None,
    "linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "wte"]},
    "two": {"target_modules": ["lm_head", "embed_tokens", "wte"]},
    "whole head": {"target_modules": ["o_proj", "c_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["o_proj", "c_proj"], "trainable_token_indices": [5, 6]},
    "dora": {"target_modules": ["o_proj", "c_proj"], "use_dora": True},
}


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *(("llama", how) for how in HOW),
        *((family, how) for family in list(FAMILIES)[1:] for how in ("linear", "two")),
    ],
)
def test_a_model_is_written_as_peft_and_transformers_would(family, how, tmp_path):
    """Merged module by module, bit by bit what merge_and_unload and save_pretrained write, the
    configuration too; ties kept or told.
    """
    for tied in (True, False):
        model = make(family, tied)
        if HOW[how]:
            model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **HOW[how]))
            shake(model)
        ours, theirs = tmp_path / f"ours-{tied}", tmp_path / f"theirs-{tied}"
        ours.mkdir()
        before = said(model)
        write_model(model.get_base_model() if HOW[how] else model, ours)
        assert torch.equal(said(model), before)
        merge_adapters(copy.deepcopy(model)).save_pretrained(theirs)
        for name in ("config.json", "generation_config.json"):
            assert (ours / name).read_text() == (theirs / name).read_text()
        found, wanted = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name


def test_large_tensors_are_merged_by_rows_and_divided_among_files(tmp_path, monkeypatch):
    """The same numbers but for the last digit; several files and an index that transformers
    reads.
    """
    monkeypatch.setattr(written, "AT_ONCE", 64)
    monkeypatch.setattr(written, "SHARD", 9_000)
    model = get_peft_model(
        make(),
        LoraConfig(
            r=2, target_modules=["q_proj", "lm_head", "embed_tokens"], task_type="CAUSAL_LM"
        ),
    )
    shake(model)
    write_model(model.get_base_model(), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((tmp_path / file).stat().st_size < 11_000 for file in files)
    torch.testing.assert_close(
        said(AutoModelForCausalLM.from_pretrained(tmp_path)), said(model), rtol=0, atol=2e-6
    )


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made and still there, at their most."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        views = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage.data_ptr() and storage.data_ptr() not in self.seen | views:
                    self.seen.add(storage.data_ptr())
                    self.count(storage, storage.data_ptr(), storage.nbytes())
        return out

    def count(self, storage, key, size):
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, key, size)

    def drop(self, key, size):
        self.now -= size
        self.seen.discard(key)


@pytest.mark.parametrize("merge", [False, True])
def test_saving_holds_no_copy_of_the_model(merge, tmp_path, monkeypatch):
    """Tensors made while a folder is written and proven come to a fifth of a model of eight layers
    at most.
    """
    for module in (written, readback):
        monkeypatch.setattr(module, "AT_ONCE", 1 << 12)
    folder = save(
        make(hidden_size=64, intermediate_size=96, num_hidden_layers=8), tmp_path / "base"
    )
    policy = load_policy(lora(folder))
    shake(policy.model)
    with Held() as held:
        policy.save(tmp_path / "model", merge=merge)
    whole = 4 * sum(
        p.numel() for name, p in policy.causal.named_parameters() if "lora_" not in name
    )
    assert (
        0
        < held.most
        < 0.2 * whole
        + (0 if merge else 3 * 4 * sum(p.numel() for p in policy.trainable().values()))
    )


SOME = [
    ("llama", torch.float32),
    ("llama", torch.bfloat16),
    ("qwen3", torch.bfloat16),
    ("gpt2", torch.bfloat16),
]


@pytest.mark.parametrize(
    ("family", "dtype"), [*SOME, ("gemma3", torch.float32), ("moe", torch.float32)]
)
def test_adapters_are_saved_as_adapters_in_the_precision_of_their_base(
    family, dtype, saved, tmp_path, monkeypatch
):
    """PEFT's two ways, transformers and laurel load the folder from elsewhere and say the same; no
    weight of the base is in it.
    """
    base = tmp_path / "base"
    save(make(family).to(dtype), base)
    monkeypatch.chdir(tmp_path)
    policy = load_policy(lora("base"))
    shake(policy.model)
    notes = policy.save("run/model")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = str(tmp_path / "run/model")
    tensors = load_file(tmp_path / "run/model/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype} and all(
        "lora_" in name for name in tensors
    )
    assert json.loads((tmp_path / "run/model/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
    assert not (tmp_path / "run/model/config.json").exists() and AutoTokenizer.from_pretrained(
        folder
    )
    how = {"dtype": torch.float32}
    loaded = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **how), folder),
        AutoPeftModelForCausalLM.from_pretrained(folder, **how),
        AutoModelForCausalLM.from_pretrained(folder, **how),
        load_policy(TrainConfig(model=folder, device="cpu")).causal,
    ]
    ours, found = said(policy.causal), [said(model) for model in loaded]
    assert all(torch.equal(other, found[0]) for other in found)
    if dtype == torch.float32:
        assert torch.equal(found[0], ours) and not notes
    else:
        assert (
            0
            < float((found[0] - ours).abs().max())
            < 0.1 * float((ours - said(load_causal(str(base)))).abs().max())
        )
        assert "saved in bfloat16" in notes[0]


@pytest.mark.parametrize(
    ("asked", "kept"), [(None, "bfloat16"), ("auto", "bfloat16"), ("float32", "float32")]
)
def test_a_bfloat16_model_comes_back_as_one_unless_float32_is_asked_for(
    asked, kept, saved, tmp_path
):
    """Full training and merging keep the size of the base's file; --save_dtype float32 keeps every
    bit.
    """
    for use_peft in (False, True):
        config = lora(saved("llama", torch.bfloat16)).model_copy(update={"use_peft": use_peft})
        policy = load_policy(config)
        shake(policy.model, 1e-3)
        notes = policy.save(tmp_path / "model", merge=True, dtype=asked)
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        assert {str(t.dtype) for t in tensors.values()} == {f"torch.{kept}"}
        assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == kept
        assert bool(notes) == (kept == "bfloat16")
        gap = float(
            (
                said(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32))
                - said(policy.causal)
            )
            .abs()
            .max()
        )
        assert gap < (1e-6 if kept == "float32" else 1e-2)
    alone = Policy(make().double(), char_tokenizer())  # from no folder: as it is in memory
    alone.save(tmp_path / "double")
    assert {t.dtype for t in load_file(tmp_path / "double" / "model.safetensors").values()} == {
        torch.float64
    }


def test_adapters_that_cannot_be_adapters_are_merged_and_it_is_said(tmp_path):
    """A base that was in no folder, or is gone."""
    base = save(make(), tmp_path / "base")
    policy = load_policy(lora(base))
    shake(policy.model)
    (tmp_path / "base").rename(tmp_path / "moved")
    assert "whole model is saved" in policy.save(tmp_path / "gone")[0]
    alone = Policy(policy.model, policy.tokenizer)
    assert "is in no folder" in alone.save(tmp_path / "alone")[0]
    for name in ("gone", "alone"):
        again = said(AutoModelForCausalLM.from_pretrained(tmp_path / name))
        torch.testing.assert_close(again, said(policy.causal), rtol=0, atol=1e-6)


def test_adapters_that_are_written_otherwise_are_noticed(saved, tmp_path, monkeypatch):
    """A tensor changed or lost on its way to the disk: the error says how far off, what was written
    is beside, the old folder stays.
    """
    policy = load_policy(lora(saved()))
    policy.save(tmp_path / "model")
    before = (tmp_path / "model" / "adapter_model.safetensors").read_bytes()
    shake(policy.model)
    real = saving.write_adapters

    def scaled(one, folder, dtype):
        real(type(one)({n: t * 1.001 for n, t in one.tensors.items()}, one.config), folder, dtype)

    def fewer(one, folder, dtype):
        real(type(one)(dict(list(one.tensors.items())[1:]), one.config), folder, dtype)

    for write, told in ((scaled, "0.00"), (fewer, "inf")):
        monkeypatch.setattr(saving, "write_adapters", write)
        with pytest.raises(
            LaurelError,
            match=(
                rf"saved adapter differs .* by {told}.*checkpoint is kept.*model-unproven.*--resume"
                r" true"
            ),
        ):
            policy.save(tmp_path / "model")
        assert (tmp_path / "model-unproven" / "adapter_model.safetensors").is_file()
        assert (tmp_path / "model" / "adapter_model.safetensors").read_bytes() == before


def test_a_disk_that_gives_back_other_bytes_is_noticed(tmp_path):
    piece = written.unchanged(torch.arange(64.0).view(8, 8))
    file = tmp_path / "model.safetensors"
    written.write_file({"a": piece}, file, None)
    data = bytearray(file.read_bytes())
    start = len(data) - 256
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match="a was written, and is read back otherwise"):
        written.check_written(
            file,
            start,
            {"a": 256},
            {"a": __import__("zlib").crc32(bytes(torch.arange(64.0).numpy().data))},
        )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["opt", "mamba"])
def test_models_of_other_habits_are_read_back_too(kind, tmp_path):
    """OPT makes its positions of a mask, Mamba reads the weights of a part: full and merged,
    proven, and a lost merge is noticed.
    """
    size = {"vocab_size": len(char_tokenizer()), "hidden_size": 16, "num_hidden_layers": 2}
    if kind == "opt":
        more = {
            "ffn_dim": 24,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 32,
        }
        model = OPTForCausalLM(OPTConfig(**size, **more))
    else:
        model = MambaForCausalLM(MambaConfig(**size, state_size=4))
    policy = load_policy(TrainConfig(model=save(model, tmp_path / "base"), device="cpu"))
    policy.save(tmp_path / "model")
    ours, inputs = policy.probe_logits(), {"input_ids": policy.probe()}
    assert (
        saving.model_gap(tmp_path / "model", AutoModelForCausalLM, ours, torch.float32, inputs)[0]
        < 1e-6
    )
    found = saving.model_gap(
        tmp_path / "model", AutoModelForCausalLM, ours * 1.01, torch.float32, inputs
    )
    assert found[0] > found[1] > 0


@pytest.fixture(scope="module")
def judge(saved, tmp_path_factory):
    """judge(family, labels) -> a scorer with tuned adapters, and the folder it was saved to."""
    made = {}

    def find(family="llama", labels=1):
        if (family, labels) not in made:
            scorer = load_scorer(saved(family), num_labels=labels, device="cpu")
            scorer.adapt(TrainConfig(lora_r=2))
            shake(scorer.model)
            folder = tmp_path_factory.mktemp("judge") / "model"
            assert scorer.save(folder) == []
            made[family, labels] = scorer, str(folder)
        return made[family, labels]

    return find


@pytest.mark.parametrize(
    ("family", "labels"), [("llama", 1), ("llama", 3), ("gpt2", 3), ("gemma3", 1), ("moe", 1)]
)
def test_a_scorers_adapters_keep_their_head(family, labels, saved, judge):
    """PEFT puts them on the base with the head; laurel reads them merged, or to be trained on; the
    language model's loader refuses them.
    """
    scorer, folder = judge(family, labels)
    ours = scorer.score(ROWS)
    auto = AutoModelForSequenceClassification if labels == 1 else AutoModelForTokenClassification
    base = auto.from_pretrained(saved(family), num_labels=labels)
    base.resize_token_embeddings(len(scorer.tokenizer))
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([row])).logits[0] for row in ROWS]
    theirs = torch.stack(rows)[:, 0] if labels == 1 else torch.stack([row[-1] for row in rows])
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)
    assert trained_labels(folder) == labels
    read, on = load_scorer(folder, device="cpu"), load_scorer(folder, device="cpu", adapters=True)
    torch.testing.assert_close(read.score(ROWS), ours, rtol=0, atol=2e-6)
    assert torch.equal(on.score(ROWS), ours) and read.adapters is None
    on.adapt(TrainConfig(lora_r=2))
    assert on.trainable().keys() == scorer.trainable().keys()
    with pytest.raises(UsageError, match="adapters of a trained scorer"):
        load_causal(folder)
    with pytest.raises(UsageError, match="needs a language model's head"):
        check_language_head(folder)


def test_a_scorers_adapters_are_a_reward_a_critic_and_a_start(judge, saved, tmp_path):
    scorer, folder = judge()
    ours = scorer.score(ROWS)
    text = [{"prompt": "a", "completion": "b"}]
    assert learned(folder, device="cpu")(["a"], ["b"]) == pytest.approx(
        scorer.score(text).tolist(), abs=1e-5
    )
    policy = load_policy(TrainConfig(model=saved(), device="cpu"))
    critic = own_critic(policy, load_scorer(folder, num_labels=1, device="cpu").model)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        value = critic.head(critic.model["body"](ids).last_hidden_state)[0, -1]
    assert float(value) == pytest.approx(float(ours[0]), abs=1e-5)
    on = load_scorer(folder, device="cpu", adapters=True)
    shake(on.model)
    on.save(tmp_path / "on")
    assert (
        float(
            (load_scorer(str(tmp_path / "on"), device="cpu").score(ROWS) - on.score(ROWS))
            .abs()
            .max()
        )
        < 1e-5
    )


def test_a_scorer_from_a_language_models_adapters_goes_on_with_them(saved, tmp_path):
    """Where they are the body's alone; adapters of the head too are merged, and the whole scorer is
    saved.
    """
    for names, kept in (
        (["q_proj"], True),
        (["q_proj", "lm_head"], False),
        ([r".*layers\.1.*(q|k)_proj"], True),
    ):
        policy = load_policy(lora(saved(), *names))
        shake(policy.model)
        start, end = tmp_path / f"start{len(names)}{kept}", tmp_path / f"end{len(names)}{kept}"
        policy.save(start)
        scorer = load_scorer(str(start), device="cpu", adapters=True)
        assert (scorer.adapters is not None) == kept
        scorer.adapt(TrainConfig(lora_r=2))
        shake(scorer.model)
        notes = scorer.save(end)
        assert (end / "adapter_config.json").exists() == kept == (not notes)
        torch.testing.assert_close(
            load_scorer(str(end), device="cpu").score(ROWS), scorer.score(ROWS), rtol=0, atol=1e-5
        )


def test_what_two_computations_may_differ_by_follows_the_size_of_the_logits(saved):
    """Ten times the head: ten times the bound; bfloat16: by its precision."""
    policy = load_policy(TrainConfig(model=saved(), device="cpu"))
    assert policy.slack == rounding_tolerance(
        torch.float32, 4.605170185988092
    )  # log of 100 words: the log-probabilities are the larger numbers
    loud = make(tied=False)
    with torch.no_grad():
        loud.lm_head.weight.mul_(1000)
    loud = Policy(loud, policy.tokenizer)
    assert loud.logit_size > 50 and loud.slack == rounding_tolerance(torch.float32, loud.logit_size)
    assert rounding_tolerance(torch.bfloat16, 1.0) > 1000 * rounding_tolerance(torch.float32, 1.0)
