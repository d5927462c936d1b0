"""What is loaded is what was meant: every tensor from its files, in its shape, finite; and the row
of the padding token learns.
"""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.data.source import Row
from laurel.model.folders import check_folder
from laurel.model.policy import load_causal, load_policy, load_tokenizer
from laurel.model.scorer import load_scorer
from laurel.model.scratch import char_tokenizer, save_scratch
from laurel.rollout.sampler import sample
from laurel.rollout.source import DEMONSTRATIONS
from laurel.train.fitting import select_fitting_rows

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, SIZE),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SIZE, **HEADS}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {**SIZE, **HEADS, "sliding_window": 8}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {**SIZE, **HEADS, **EXPERTS}),
}


def make(family="llama", tied=True, rows=None, **more):
    """A tiny random model of a family, whose padding token is its end token."""
    model, config, shape = FAMILIES[family]
    torch.manual_seed(0)
    ends = {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}
    return model(
        config(
            vocab_size=rows or len(char_tokenizer()),
            tie_word_embeddings=tied,
            **ends,
            **(shape | more),
        )
    )


def save(model, folder):
    """The model with its tokenizer, as an ordinary folder."""
    model.save_pretrained(folder)
    tokenizer = char_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return str(folder)


def edit(folder, change):
    """Write the folder's tensors anew, as `change` makes them."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        file,
        metadata={"format": "pt"},
    )
    return str(folder)


def configure(folder, **values):
    """Change config.json."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    config.pop("layer_types", None)
    file.write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family, tied) -> a folder, written once; never to be changed."""
    made = {}

    def find(family="llama", tied=True):
        if (family, tied) not in made:
            made[family, tied] = tmp_path_factory.mktemp(f"{family}-{tied}")
            save(make(family, tied), made[family, tied])
        return made[family, tied]

    return find


@pytest.fixture
def copied(saved, tmp_path):
    """copied(family, tied) -> a folder of one's own."""

    def copy(family="llama", tied=True):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(saved(family, tied), tmp_path / "copy")

    return copy


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_from_nowhere_is_an_error_for_every_family(copied, family, tied):
    """The whole folder loads; a wrapper's prefix, layers that config.json asks for, or that it does
    not, are told and why.
    """
    load_causal(str(copied(family, tied)))
    with pytest.raises(
        UsageError,
        match=r"are not in its files and would be random, such as .*`_orig_mod\.`.*torch\.compile",
    ):
        load_causal(
            edit(copied(family, tied), lambda w: {f"_orig_mod.{name}": x for name, x in w.items()})
        )
    with pytest.raises(UsageError, match="asks for 3 layers and the files hold 2"):
        load_causal(configure(copied(family, tied), num_hidden_layers=3, n_layer=3))
    with pytest.raises(UsageError, match="asks for 1 layers and the files hold 2"):
        load_causal(configure(copied(family, tied), num_hidden_layers=1, n_layer=1))


def bare(tensors, *lost):
    return {name: x for name, x in tensors.items() if not any(part in name for part in lost)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {f"module.{n}": x for n, x in w.items()}, "`module.`.*DataParallel"),
        (
            lambda w: {n.replace("self_attn.", "self_attn._orig_mod."): x for n, x in w.items()},
            r"^\S+ 8 of .*_orig_mod",
        ),
        (
            lambda w: {n.replace("model.", "model.language_model."): x for n, x in w.items()},
            "`language_model.`",
        ),
        (lambda w: {f"base_model.model.{n}": x for n, x in w.items()}, r"base_model\.model\."),
        (
            lambda w: {n.replace("q_proj.", "q_proj.base_layer."): x for n, x in w.items()},
            "merge them",
        ),
        (
            lambda w: bare(w, "layers.1.mlp.up_proj"),
            r"1 of the model's 21 tensors is .*layers\.1\.mlp\.up_proj",
        ),
        (lambda w: w | {"extra.weight": torch.ones(2)}, "no place for .*extra.weight"),
        (lambda w: w | {"score.weight": torch.ones(1, 16)}, "trained scorer"),
        (lambda w: w | {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, "quantised"),
        (lambda w: {n: (9 * x).to(torch.int8) for n, x in w.items()}, "8-bit integers"),
        (lambda w: {n: torch.zeros(0) for n in w}, "gather the whole weights"),
        (
            lambda w: w | {"model.embed_tokens.weight": torch.ones(90, 16)},
            r"\(90, 16\), where \(100, 16\).*vocab_size",
        ),
        (
            lambda w: w | {"model.norm.weight": torch.ones(8)},
            r"model\.norm\.weight: \(8,\), where \(16,\)",
        ),
        (
            lambda w: w | {"model.norm.weight": torch.full((16,), torch.nan)},
            r"16 of the 16 numbers of model\.norm\.weight",
        ),
        (
            lambda w: {n: x / 0 if "o_proj" in n else x for n, x in w.items()},
            r"self_attn\.o_proj\.weight are not finite",
        ),
    ],
)
def test_what_is_wrong_with_the_tensors_is_named_with_its_cause(copied, change, said):
    with pytest.raises(UsageError, match=said):
        load_causal(edit(copied(), change))


def test_the_cause_that_is_named_mends_it(copied):
    """The advice is true: doing what the error says gives the model back, to the bit."""
    whole = load_causal(str(copied())).state_dict()
    folder = copied()
    edit(folder, lambda w: {f"_orig_mod.{name}": x for name, x in w.items()})
    mended = load_causal(
        edit(folder, lambda w: {name.replace("_orig_mod.", ""): x for name, x in w.items()})
    ).state_dict()
    assert all(torch.equal(mended[name], x) for name, x in whole.items())
    folder = copied(tied=True)
    with pytest.raises(UsageError, match="`tie_word_embeddings` to true"):
        load_causal(configure(folder, tie_word_embeddings=False))
    load_causal(configure(folder, tie_word_embeddings=True))


def test_parts_of_experts_that_are_missing(copied):
    """Experts are put together from many tensors: one that is missing, in part or whole, is told
    too.
    """
    with pytest.raises(UsageError, match="cannot be put together"):
        load_causal(edit(copied("moe"), lambda w: bare(w, "experts.2.up_proj")))
    with pytest.raises(UsageError, match="asks for 3 experts and the files hold 2"):
        load_causal(edit(copied("moe"), lambda w: bare(w, "experts.2.")))
    with pytest.raises(UsageError, match=r"mlp\.gate\.weight"):
        load_causal(edit(copied("moe"), lambda w: bare(w, "mlp.gate.weight")))


def test_what_is_rightly_unused_or_left_out_loads(copied, caplog):
    """Towers of other models and further heads are named, old buffers are not; float16 and float64
    load; a head of its own stays.
    """
    with caplog.at_level(logging.WARNING):
        load_causal(
            edit(
                copied(),
                lambda w: (
                    w
                    | {"vision_tower.a": torch.ones(1), "v_head.summary.weight": torch.ones(1, 16)}
                ),
            )
        )
    assert "2 tensors that are not used here, such as v_head.summary.weight" in caplog.text
    caplog.clear()
    masks = {f"transformer.h.0.attn.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    load_causal(edit(copied("gpt2"), lambda w: w | masks))
    assert "not used" not in caplog.text
    for dtype in (torch.float16, torch.float64):
        assert (
            load_causal(
                edit(copied(), lambda w, dtype=dtype: {n: x.to(dtype) for n, x in w.items()})
            ).dtype
            == torch.float32
        )
    apart = load_causal(configure(copied(tied=False), tie_word_embeddings=True))
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    assert not apart.config.tie_word_embeddings


def test_scorers_are_held_to_the_same(copied, tmp_path):
    """A new head may be new; anything else may not, neither of a start nor of a trained scorer."""
    with pytest.raises(UsageError, match=r"20 of .*`_orig_mod\.`"):
        load_scorer(
            edit(copied(tied=False), lambda w: {f"_orig_mod.{name}": x for name, x in w.items()}),
            device="cpu",
        )
    torch.manual_seed(0)
    LlamaModel(make().config).save_pretrained(tmp_path / "body")
    char_tokenizer().save_pretrained(tmp_path / "body")
    configure(tmp_path / "body", tie_word_embeddings=False)
    assert load_scorer(str(tmp_path / "body"), device="cpu").num_labels == 1
    with pytest.raises(UsageError, match="hold no output head"):
        load_causal(str(tmp_path / "body"))
    load_scorer(str(copied()), device="cpu").save(tmp_path / "scorer")
    with pytest.raises(UsageError, match=r"score\.weight"):
        load_scorer(edit(tmp_path / "scorer", lambda w: bare(w, "score")), device="cpu")


def test_files_are_looked_at_before_they_are_read(tmp_path):
    """An index that names absent files, a file cut short, a pointer, something else: each is named,
    with nothing loaded.
    """
    make().save_pretrained(tmp_path, max_shard_size="4KB")
    check_folder(str(tmp_path))
    first, second, *_ = sorted(tmp_path.glob("model-*"))
    whole = first.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1"
    for content, said in [
        (whole[:-9], "its header"),
        (whole[:40], "damaged"),
        (pointer, "Git LFS"),
        (b"", "damaged"),
    ]:
        first.write_bytes(content)
        with pytest.raises(UsageError, match=f"{first.name}: .*{said}"):
            check_folder(str(tmp_path))
    first.write_bytes(whole)
    second.unlink()
    with pytest.raises(UsageError, match=f"1 are not there, such as {second.name}"):
        load_causal(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UsageError, match=r"index\.json: it cannot be read"):
        load_causal(str(tmp_path))


def test_folders_of_torch_files(copied):
    """`.bin` files load, in both of torch's formats; prefixed, cut short, or a training checkpoint,
    they are told.
    """
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    for new in (True, False):
        torch.save(tensors, file, _use_new_zipfile_serialization=new)
        load_causal(str(folder))
    for content, said in [
        ({f"_orig_mod.{n}": x for n, x in tensors.items()}, "_orig_mod"),
        ({"model": tensors}, "under `model`"),
    ]:
        torch.save(content, file)
        with pytest.raises(UsageError, match=said):
            load_causal(str(folder))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="cut short"):
        load_causal(str(folder))


def test_what_other_libraries_say_of_a_folder_is_told_in_ours(copied):
    for values, said in [
        ({"model_type": "nonesuch"}, "cannot load a causal"),
        ({"num_hidden_layers": "two"}, "expected int"),
    ]:
        with pytest.raises(UsageError, match=said):
            load_causal(configure(copied(), **values))
    folder = copied()
    (folder / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match="cannot load a tokenizer"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_token_learns_where_it_pads(saved, family):
    """torch gives the row of pad_token_id no gradient; here it is the end token, and its row learns
    from what follows it.
    """
    policy = load_policy(TrainConfig(model=str(saved(family, False)), device="cpu"))
    embedding = policy.causal.get_input_embeddings()
    policy.causal(torch.tensor([[5, 2, 6, 7]])).logits.square().sum().backward()
    assert policy.tokenizer.eos_token_id == policy.causal.config.pad_token_id == 2
    assert float(embedding.weight.grad[2].abs().max()) > 0
    body = load_scorer(str(saved(family, False)), device="cpu").model.get_input_embeddings()
    assert body.padding_idx is None


def test_a_row_of_zeros_that_only_pads_stays(tmp_path):
    """A pad token of its own, never trained: sampled by chance, its gradient behind a norm would be
    a thousand times too large.
    """
    folder = tmp_path / "scratch"
    save_scratch(
        folder,
        alphabet="0123456789+=",
        seed=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    embedding = load_policy(
        TrainConfig(model=str(folder), device="cpu")
    ).causal.get_input_embeddings()
    pad = embedding.padding_idx
    assert pad is not None and not embedding.weight[pad].any()


def test_ids_beyond_the_embedding_are_named_before_they_are_looked_up(tmp_path):
    """A tokenizer longer than the embedding: the rows that need the missing ones are named; all
    others train and sample.
    """
    policy = load_policy(TrainConfig(model=save(make(rows=90), tmp_path), device="cpu"))
    config = TrainConfig(model=str(tmp_path), dataset="d", max_length=64)
    row = Row({"prompt": "1", "completion": "2"}, "d.jsonl:1", "a")
    far = Row(
        {"prompt": "1", "completion": policy.tokenizer.convert_ids_to_tokens(95)}, "d.jsonl:2", "b"
    )
    assert len(select_fitting_rows(policy, [row], config, DEMONSTRATIONS)[0]) == 1
    with pytest.raises(UsageError, match=r"d\.jsonl:2: .* 95, .* has 90 rows"):
        select_fitting_rows(policy, [row, far], config, DEMONSTRATIONS)
    with pytest.raises(UsageError, match=r"prompt 2: .* 99, "):
        sample(policy, [(5,), (5, 99)], seeds=[0, 1], max_completion_length=2)
    with pytest.raises(UsageError, match="a text: "):
        policy.causal(torch.tensor([[5, 91]]))
    with pytest.raises(UsageError, match="padding token must come behind both"):
        load_scorer(str(tmp_path), device="cpu")
