"""Memory foreseen: activations by a pass over shapes, the parts of a step, what is refused, and the
same from a configuration alone.
"""

from types import SimpleNamespace

import pytest
import torch
from toy import make_toy, toy_config
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from laurel.cli import doctor_fit
from laurel.cli.main import main
from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.fast.decode import compact_of
from laurel.model.policy import load_policy
from laurel.model.scratch import char_tokenizer
from laurel.train import activation_memory, memory
from laurel.train.activation_memory import activations, autograd_bytes
from laurel.train.algorithms import ALGORITHMS
from laurel.train.loop import train
from laurel.train.memory import forecast_bytes, longest_groups, work_in
from laurel.train.options import resolve
from laurel.train.setup import prepare_session

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 8, "sliding_window": 16}),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family) -> a folder, written once."""
    made = {}

    def find(family):
        if family not in made:
            model, config, more = FAMILIES[family]
            made[family] = tmp_path_factory.mktemp(family)
            model(
                config(vocab_size=128, eos_token_id=2, pad_token_id=2, **SHAPE, **more)
            ).save_pretrained(made[family])
            char_tokenizer().save_pretrained(made[family])
        return str(made[family])

    return find


def measured(policy, batch):
    """Bytes that a real pass over the batch keeps."""
    with torch.enable_grad(), policy.autocast():
        return autograd_bytes(lambda: policy.hidden(batch), list(policy.model.parameters()))


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_doctor_tells_is_what_a_run_foresees_and_measures(
    family, peft, held, saved, monkeypatch
):
    """From config.json alone, and from the loaded model: every part within 1 %; activations as a
    real pass keeps them, within 2 %.
    """
    how = {
        "model": saved(family),
        "device": "cpu",
        "dtype": "bfloat16",
        "param_dtype": held,
        "beta": 0.1,
        "use_peft": peft,
        "lora_r": 2,
    }
    sizes = {
        "prompts_per_step": 4,
        "num_generations": 4,
        "max_prompt_length": 24,
        "max_completion_length": 20,
    }
    config = resolve("grpo", TrainConfig(token_budget=200, **how, **sizes))
    monkeypatch.setattr(doctor_fit, "logit_room", lambda *asked: 1 << 20)
    told = doctor_fit.forecast_fit("grpo", config, "cpu", None)
    policy = load_policy(config)
    policy.room = 1 << 20
    reference = SimpleNamespace(adapters_off=peft, policy=policy)
    divided = SimpleNamespace(by_comparison=False, packs=policy.packs)
    work = work_in(longest_groups([(1,) * 24] * 4, 4, 20), config, divided, 4, 24, 20)
    found = forecast_bytes(policy, reference, None, config, ALGORITHMS["grpo"], work, "cpu")
    assert policy.packs and work.several and told.tokens == 24 + 4 * 20
    assert told.found.there == found.there and told.found.phases == found.phases
    assert told.found.parts == {
        name: pytest.approx(size, rel=0.01) for name, size in found.parts.items()
    }
    real = measured(policy, work.micro)
    assert found.parts["activations"] + found.parts["copies of weights"] == pytest.approx(
        real, rel=0.02
    )
    matrices = sum(
        p.numel()
        for n, p in policy.causal.named_parameters()
        if p.ndim > 1 and "layers" in n and "lora_" not in n
    )
    copied = found.parts["copies of weights"]
    assert copied == pytest.approx(0 if held == "bfloat16" else 2 * matrices, rel=0.1)
    compact = compact_of(policy)
    assert found.parts["sampler's weights"] == sum(
        tensor.nbytes for tensor in compact.copies.values()
    )


def test_activations_follow_the_layout_and_checkpointing(toy, tmp_path):
    """Shared prompts are counted once; with gradient checkpointing only inputs of layers are kept,
    and one layer's insides.
    """
    made, _ = prepare_session("grpo", toy_config(toy, tmp_path / "a", num_generations=8))
    policy, weights = made.policy, list(made.policy.model.parameters())
    body, work = memory.body_of(policy.causal), memory.work_of(made)
    assert activations(body, work.micro, policy.autocast, weights) == pytest.approx(
        measured(policy, work.micro), rel=0.02
    )
    again, _ = prepare_session(
        "grpo", toy_config(toy, tmp_path / "b", num_generations=8, gradient_checkpointing=True)
    )
    layers, work = again.policy.causal.model.layers, memory.work_of(again)
    tokens = activation_memory.count_computed_tokens(work.micro, packed=True)
    less = activations(
        memory.body_of(again.policy.causal),
        work.micro,
        again.policy.autocast,
        list(again.policy.model.parameters()),
    )
    whole = activations(body, work.micro, policy.autocast, weights)
    assert less == whole // len(layers) + len(layers) * tokens * 32 * 4
    assert all(layer.gradient_checkpointing for layer in layers)


def test_a_family_that_cannot_be_imagined_is_measured(toy, tmp_path, monkeypatch):
    """On two short rows, and scaled."""
    made, _ = prepare_session("sft", toy_config(toy, tmp_path, reward=None))
    policy, weights = made.policy, list(made.policy.model.parameters())
    body, batch = memory.body_of(policy.causal), activation_memory.one_row(300)
    monkeypatch.setattr(
        activation_memory,
        "activation_bytes",
        lambda *of: (_ for _ in ()).throw(RuntimeError("no meta kernel")),
    )
    assert activations(body, batch, policy.autocast, weights) == pytest.approx(
        measured(policy, batch), rel=0.02
    )


def test_all_that_a_step_takes_is_foreseen(toy, tmp_path):
    """Policy, reference, gradients, moments, activations, keys and values; a critic of its own
    doubles what is trained and kept.
    """
    plain, _ = prepare_session("grpo", toy_config(toy, tmp_path / "a", num_generations=8, beta=0.1))
    one = forecast_bytes(
        plain.policy, plain.reference, None, plain.config, plain.row, memory.work_of(plain), "cpu"
    )
    weights = 4 * plain.policy.num_parameters
    assert one.there == {"policy": weights, "reference": weights}
    assert (
        one.parts["gradients"] == one.parts["what is saved"] == weights
        and one.parts["moments"] == 2 * weights
    )
    prompt = len(plain.policy.tokenizer("0=")["input_ids"])
    assert (
        one.parts["keys and values"] == 1 * 2 * 32 * 4 * (4 * 16 + 4 * 8 * 16) and prompt < 16
    )  # layers, K and V, width, rounded up
    actor, _ = prepare_session(
        "ppo", toy_config(toy, tmp_path / "b", num_generations=8, critic_model="policy")
    )
    two = forecast_bytes(
        actor.policy, None, actor.auxiliary, actor.config, actor.row, memory.work_of(actor), "cpu"
    )
    assert two.there["critic"] > 0.9 * weights and two.parts["gradients"] > 1.9 * weights
    assert two.parts["activations"] == pytest.approx(2 * one.parts["activations"], rel=0.01)
    search, _ = prepare_session("es", toy_config(toy, tmp_path / "c", population=4))
    few = forecast_bytes(
        search.policy, None, None, search.config, search.row, memory.work_of(search), "cpu"
    )
    assert few.parts["a copy"] == weights and "activations" not in few.parts


def test_activations_and_gradients_are_there_together_only_where_gradients_wait(toy, tmp_path):
    """One micro-batch: activations go as gradients come. Several: those of the first wait."""
    found = []
    for budget in (2048, 64):
        made, _ = prepare_session(
            "sft",
            toy_config(
                toy, tmp_path / str(budget), reward=None, prompts_per_step=64, token_budget=budget
            ),
        )
        work = memory.work_of(made)
        found.append(
            (
                work.several,
                forecast_bytes(made.policy, None, None, made.config, made.row, work, "cpu"),
            )
        )
    (alone, one), (several, many) = found
    assert not alone and several
    forward = "the forward pass and the loss"
    assert "gradients" not in one.phases[forward] and "gradients" in many.phases[forward]
    assert many.parts["activations"] < 0.2 * one.parts["activations"]
    head = 4 * made.policy.causal.get_output_embeddings().weight.numel()
    assert one.parts["gradient of the head"] == head
    tied = (
        made.policy.causal.get_output_embeddings().weight
        is made.policy.causal.get_input_embeddings().weight
    )
    assert (
        tied
        and many.parts["gradients twice"] - one.parts["gradients twice"]
        == one.parts["gradients twice"]
        >= head
    )


def test_a_step_that_the_device_cannot_hold_is_refused_before_it(toy, tmp_path, monkeypatch):
    """It says what is needed, what is there, and three ways out that help; nothing is left
    behind.
    """
    monkeypatch.setattr(memory, "device_memory", lambda device: (1000, 64 << 30))
    how = {"reward": None, "token_budget": 2048, "prompts_per_step": 512}
    with pytest.raises(UsageError, match=r"a step needs about .* GB .* are there") as caught:
        train("sft", toy_config(toy, tmp_path / "run", **how), quiet=True)
    assert [
        word in caught.value.fix for word in ("token_budget (now 2048)", "gradient_checkpointing")
    ] == [True] * 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(memory, "device_memory", lambda device: None)
    train("sft", toy_config(toy, tmp_path / "run", reward=None, max_steps=1), quiet=True)


def test_the_table_of_the_doctor_says_whether_it_fits(saved):
    """On a device that is not here: both ways to train, what they add up to, and three ways out."""
    config = TrainConfig(model=saved("llama"), param_dtype="bfloat16", optim="adamw_8bit")
    fits = doctor_fit.fit_lines("ppo", config, 80)
    assert (
        fits[-2].startswith("all weights: fits: 0.")
        and fits[-1].startswith("LoRA: fits: 0.")
        and any("beside it" in x for x in fits)
    )
    lines = doctor_fit.fit_lines("grpo", config, 0.001)
    assert (
        lines[-2].startswith("all weights: does not fit")
        and "Lower token_budget (now 16384)" in lines[-2]
    )
    with pytest.raises(UsageError, match="no such model folder"):
        doctor_fit.fit_lines("grpo", TrainConfig(model="nowhere/at/all"), 80)


def test_the_command_prints_the_table_and_wants_an_algorithm(saved, capsys):
    """`laurel doctor --model M --algorithm A` with options of `laurel train`; such options without
    an algorithm are an error.
    """
    words = [
        "doctor",
        "--model",
        saved("qwen2"),
        "--param_dtype",
        "bfloat16",
        "--device_memory",
        "80",
    ]
    assert main([*words, "--algorithm", "sft", "--max_length", "64"]) == 0
    printed = capsys.readouterr().out
    assert (
        "sft: 16 rows of data of 64 tokens" in printed
        and "rest of float32 masters" in printed
        and "LoRA: fits" in printed
    )
    assert main(words) == 2 and "no algorithm is named" in capsys.readouterr().err
    assert (
        main([*words, "--algorithm", "gpro"]) == 2
        and "unknown algorithm" in capsys.readouterr().err
    )
    assert (
        main([*words, "--algorithm", "sft", "--dtype", "float32"]) == 2
        and "multiplied in bfloat16" in capsys.readouterr().err
    )
