"""LoRA: on the modules that are named, in families, tied or not; adapters from folders; merged
folders that are what was trained.
"""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_model_weights import FAMILIES, make, save
from transformers import AutoModelForCausalLM

from laurel.core.config import TrainConfig
from laurel.core.errors import LaurelError, UsageError
from laurel.fast.decode import compact_of
from laurel.model import saving
from laurel.model.adapters import check_lora
from laurel.model.folders import check_folder
from laurel.model.policy import load_policy, load_tokenizer, make_reference
from laurel.model.saving import model_gap
from laurel.model.scorer import load_scorer
from laurel.model.written import write_model
from laurel.rollout.sampler import sample

IDS = torch.tensor([[5, 2, 6, 7, 40]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family, tied) -> a folder, written once; never to be changed."""
    made = {}

    def find(family="llama", tied=True):
        if (family, tied) not in made:
            made[family, tied] = save(
                make(family, tied), tmp_path_factory.mktemp(f"{family}-{tied}")
            )
        return made[family, tied]

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


def shake(model, size=0.1):
    """Move everything that is trained."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * size)


@pytest.mark.parametrize(
    ("family", "tied"), [*((family, True) for family in FAMILIES), ("llama", False)]
)
def test_adapters_on_head_and_embedding_are_saved_as_they_were_trained(
    saved, tmp_path, family, tied
):
    """K04: the saved folder, read by transformers alone, says what the adapted model said; the
    other tensor of the pair is as it was.
    """
    embedding = "wte" if family == "gpt2" else "embed_tokens"
    for names in (["lm_head"], [embedding]):
        policy = load_policy(lora(saved(family, tied), *names))
        shake(policy.model)
        policy.model.eval()
        policy.save(tmp_path, merge=True)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        ours = policy.causal(IDS).logits
        assert float((again(IDS).logits - ours).abs().max()) < 1e-5 * float(ours.abs().max())
        kept = {"lm_head": again.get_input_embeddings(), embedding: again.get_output_embeddings()}
        base = AutoModelForCausalLM.from_pretrained(saved(family, tied))
        was = {"lm_head": base.get_input_embeddings(), embedding: base.get_output_embeddings()}
        assert torch.equal(kept[names[0]].weight, was[names[0]].weight)
        assert not again.config.get_text_config().tie_word_embeddings


def test_a_tie_is_kept_where_nothing_parts_it_and_told_where_something_does(
    saved, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING):
        policy = load_policy(lora(saved(), "q_proj"))
        assert "apart" not in caplog.text
        policy.save(tmp_path, merge=True)
        assert AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings
        load_policy(lora(saved(), "lm_head"))
    assert "LoRA changes them apart" in caplog.text


@pytest.mark.parametrize(
    ("family", "names", "said"),
    [
        ("llama", ["q_porj"], "Did you mean `q_proj`"),
        ("llama", ["q_proj", "vproj"], "Did you mean `v_proj`"),
        ("llama", ["norm"], "`norm` is a LlamaRMSNorm.*Known: down_proj"),
        ("llama", ["self_attn"], "LlamaAttention"),
        ("llama", ["["], r"no module `\["),
        ("llama", ["all_linear"], "Did you mean `all-linear`"),
        ("gpt2", ["q_proj"], "Did you mean `c_proj`"),
        ("moe", ["q_porj"], "Did you mean `q_proj`"),
        ("moe", ["experts"], "no adapter fits a Qwen3MoeExperts"),
        ("moe", ["gate_proj"], "up_proj because they are fused"),
    ],
)
def test_names_that_mean_nothing_are_refused_before_any_weight(
    saved, monkeypatch, family, names, said
):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    with pytest.raises(UsageError, match=f"lora_target_modules: .*{said}"):
        check_lora(lora(saved(family), *names))
    with pytest.raises(UsageError, match="no module `lm_head`"):
        check_lora(lora(saved("llama"), "lm_head"), headless=True)


def test_names_that_mean_something(saved):
    """`all-linear` alone or beside others, ends of names, regular expressions; experts that
    transformers fuses.
    """

    def adapted(family, *names):
        config = lora(saved(family), *names)
        check_lora(config)
        names = [
            name
            for name in load_policy(config).trainable()
            if "lora_A" in name or "embedding_A" in name
        ]
        return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names}

    linear = adapted("llama")
    assert adapted("llama", "all-linear") == linear
    assert len(linear) == 14
    assert adapted("llama", "all-linear", "lm_head") == linear | {"lm_head"}
    assert adapted("llama", r".*layers\.1\..*(q|k)_proj") == {
        f"model.layers.1.self_attn.{x}_proj" for x in "qk"
    }
    assert adapted("llama", "layers.0.mlp.up_proj") == {"model.layers.0.mlp.up_proj"}
    assert adapted("moe", "gate_proj", "up_proj") == {
        f"model.layers.{i}.mlp.experts" for i in (0, 1)
    }


def test_sampler_and_reference_know_adapters_on_the_embedding(saved, tmp_path):
    """Tuned adapters of the embedding say something: they are not "the base", and the compact
    decoder leaves them to the model.
    """
    policy = load_policy(lora(saved(), "embed_tokens"))
    assert make_reference(policy, "start").adapters_off
    assert compact_of(policy) is None
    shake(policy.model)
    policy.model.eval()
    done = sample(policy, [(5, 6)], seeds=[0], max_completion_length=4)[0]
    ids = torch.tensor([[5, 6, *done.ids]])
    logp = policy.causal(ids).logits.log_softmax(-1)[0, 1:-1].gather(1, ids[0, 2:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(done.logps), logp, atol=1e-5, rtol=0)
    policy.model.save_pretrained(tmp_path)
    again = load_policy(TrainConfig(model=str(tmp_path), device="cpu"))
    assert not make_reference(again, "start").adapters_off


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory):
    """A folder of tuned adapters on q_proj of the tied Llama."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(
        make(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    shake(model)
    model.peft_config["default"].base_model_name_or_path = saved()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def own(adapter, tmp_path):
    """own(key=value) -> a copy of it whose configuration has these values."""

    def copy(**values):
        folder = tmp_path / "own"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapter, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return folder

    return copy


def load(folder):
    return load_policy(TrainConfig(model=str(folder), device="cpu"))


def test_an_adapter_whose_base_is_elsewhere(own, saved, tmp_path):
    """Moved, unnamed, itself an adapter, broken: each is told with the adapter's file, whatever is
    loaded, before weights.
    """
    for base, said in [
        ("/gone/away", "is not there: /gone/away"),
        (None, "names no base"),
        (str(own()), "an adapter itself"),
    ]:
        folder = own(base_model_name_or_path=base)
        for use in (check_folder, load, load_scorer, load_tokenizer):
            with pytest.raises(UsageError, match=f"adapter_config.json: .*{said}"):
                use(str(folder))
    folder = tmp_path / "base"
    shutil.copytree(saved(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {f"_orig_mod.{n}": x for n, x in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UsageError, match=r"own: its base model cannot be loaded: .*_orig_mod"):
        load(own(base_model_name_or_path=str(folder)))
    (own() / "adapter_config.json").write_text('{"r"')
    with pytest.raises(UsageError, match=r"adapter_config\.json: it cannot be read"):
        load_tokenizer(str(tmp_path / "own"))


def test_an_adapter_that_does_not_fit_its_base(own, saved, tmp_path):
    """Another rank or width, more or fewer layers or modules, tensors that are missing or not
    finite, another kind of adapter.
    """
    assert load(own()).model.peft_config
    wide, deep = (
        save(make(hidden_size=32), tmp_path / "wide"),
        save(make(num_hidden_layers=3), tmp_path / "deep"),
    )
    for values, said in [
        ({"r": 4}, "size mismatch .*lora_A"),
        ({"base_model_name_or_path": wide}, "size mismatch"),
        ({"base_model_name_or_path": saved("gpt2")}, "Target modules .*q_proj"),
        ({"base_model_name_or_path": deep}, r"lacks tensors \(2 in all\), such as .*layers\.2"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks tensors .*v_proj"),
        ({"r": "four"}, "does not fit"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"ensure_weight_tying": True}, "share their weights"),
    ]:
        with pytest.raises(UsageError, match=said):
            load(own(**values))
    with pytest.raises(UsageError, match="brings its adapters"):
        check_lora(lora(str(own()), "k_proj"))
    file = own() / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    for changed, said in [
        ({n: x for n, x in tensors.items() if n != first}, "lacks tensors"),
        (
            tensors | {first.replace("layers.0", "layers.9"): tensors[first].clone()},
            "without a place",
        ),
        (tensors | {first: tensors[first] * torch.nan}, "not finite"),
    ]:
        save_file(changed, file)
        with pytest.raises(UsageError, match=said):
            load(file.parent)
    file.unlink()
    with pytest.raises(UsageError, match="no weights of the adapter"):
        load(file.parent)
    other = get_peft_model(make(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    other.peft_config["default"].base_model_name_or_path = saved()
    other.save_pretrained(tmp_path / "prefix")
    with pytest.raises(UsageError, match="PREFIX_TUNING"):
        load(tmp_path / "prefix")


@pytest.mark.parametrize(
    "how",
    [
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"use_dora": True},
        {"target_modules": ["lm_head"]},
    ],
)
def test_adapters_made_elsewhere_are_merged_truly(saved, tmp_path, how):
    model = get_peft_model(
        make(),
        LoraConfig(**({"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | how)),
    )
    shake(model)
    model.peft_config["default"].base_model_name_or_path = saved()
    model.save_pretrained(tmp_path / "adapter")
    policy = load(tmp_path / "adapter")
    ours = model.eval()(IDS).logits
    assert torch.equal(policy.causal(IDS).logits, ours)
    policy.save(tmp_path / "model", merge=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert float((again(IDS).logits - ours).abs().max()) < 1e-5 * float(ours.abs().max())
    policy.save(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").causal(IDS).logits, ours)


@torch.no_grad()
@pytest.mark.parametrize("size", [1e-3, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_of_a_save_is_what_rounding_does(family, size, tmp_path):
    """A true merge is off by a third to twice of one rounding of every weight, whatever the logits'
    size; a lost one by far more.
    """
    model = make(family, initializer_range=0.2).eval()
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    shake(adapted, size)
    ours = adapted(IDS).logits.double()
    found = {}
    for name, causal in (
        ("true", adapted.get_base_model()),
        ("lost", make(family, initializer_range=0.2)),
    ):
        (tmp_path / name).mkdir()
        write_model(causal, tmp_path / name)
        found[name] = model_gap(
            tmp_path / name, AutoModelForCausalLM, ours, torch.float32, {"input_ids": IDS}
        )
    assert found["true"][0] <= found["true"][1] < found["lost"][0] / 10
    assert not found["lost"][0] <= found["lost"][1]


def test_a_save_that_fails_keeps_all_there_is(saved, tmp_path, monkeypatch):
    """A merge that loses the adapters is noticed; what stood in the folder stays; adapters and what
    was written are beside it, whole.
    """
    policy = load_policy(lora(saved(), "q_proj"))
    policy.save(tmp_path / "model", merge=True)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    shake(policy.model, 1e-2)
    monkeypatch.setattr(
        saving, "write_model", lambda model, made, dtype: write_model(make(), made, dtype)
    )
    said = (
        r"differs from the trained one by .* rounding explains .*model-unproven.*adapters, for"
        r" peft, are in .*adapter.*save_merged false"
    )
    with pytest.raises(LaurelError, match=said):
        policy.save(tmp_path / "model", merge=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter",
        "model",
        "model-unproven",
    ]
    assert (tmp_path / "model-unproven" / "model.safetensors").is_file()
    assert torch.equal(
        load(tmp_path / "adapter").causal(IDS).logits, policy.model.eval()(IDS).logits
    )
