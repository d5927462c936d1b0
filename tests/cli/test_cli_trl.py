"""Names of TRL's: each is the same, translated, or refused by name; a file of theirs trains as they
would have.
"""

import json
import re

import pytest
import yaml

from laurel.cli.main import main
from laurel.core.config import (
    ALGORITHM_NAMES,
    UNIVERSAL_OPTIONS,
    EvalConfig,
    TrainConfig,
    build_config,
)
from laurel.core.errors import UsageError, misspelt
from laurel.core.trl import Request
from laurel.core.trl_names import DUMPED, TABLE, defaults_of
from laurel.core.trl_rules import TRAINERS
from laurel.train.options import applicable_options

FIELDS = set(TrainConfig.model_fields)


def asking(algorithm):
    return Request(algorithm, own=lambda: applicable_options(algorithm))


def built(algorithm, **given):
    return build_config(given, ask=asking(algorithm))


def test_the_table_speaks_of_options_that_there_are():
    """`same` is an option here, translations lead to options, nothing else is one, and every word
    and command in the text exists.
    """
    for name, row in TABLE.items():
        assert (row.kind == "same") == (name in FIELDS), name
        assert set(row.ours) <= FIELDS, name
        words = re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", row.say)
        assert set(words) <= FIELDS | set(TABLE) | {"reverse_kl", *ALGORITHM_NAMES}, (name, words)
        assert {
            word for word in re.findall(r"laurel train (\w+)", row.say) if word.islower()
        } <= set(ALGORITHM_NAMES), name
        assert row.kind == "same" or row.say, name


def test_the_options_of_every_algorithm_are_listed_truly():
    """UNIVERSAL_OPTIONS is what a hint may name without asking torch."""
    open_ = {name for name, field in TrainConfig.model_fields.items() if field.default is None}
    assert {
        name for name in open_ if all(name in applicable_options(one) for one in ALGORITHM_NAMES)
    } == set(UNIVERSAL_OPTIONS)


TRANSLATED = [
    ("grpo", {"reward_funcs": "exact"}, {"rewards": ["exact"]}),
    (
        "grpo",
        {"reward_funcs": ["accuracy_reward", "mine.f"], "reward_model_name_or_path": "R"},
        {"rewards": ["model:R", "math", "mine.f"]},
    ),
    (
        "grpo",
        {"reward_funcs": ["think_format_reward"]},
        {"rewards": ["trl.rewards.think_format_reward"]},
    ),
    (
        "grpo",
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_generations": 16},
        {"prompts_per_step": 2},
    ),
    ("rloo", {"per_device_train_batch_size": "8"}, {"prompts_per_step": 1}),
    (
        "sft",
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
        {"prompts_per_step": 32},
    ),
    ("sft", {"per_device_train_batch_size": 8, "prompts_per_step": "8"}, {"prompts_per_step": 8}),
    (
        "grpo",
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://h:8001"},
        {"engine": ["http://h:8001"]},
    ),
    (
        "rloo",
        {"use_vllm": "true", "vllm_mode": "server", "vllm_server_port": 8001},
        {"engine": ["http://127.0.0.1:8001"]},
    ),
    ("grpo", {"use_vllm": True}, {"engine": None}),
    ("grpo", {"vllm_server_base_url": "http://h:8001"}, {"engine": None}),
    ("grpo", {"engine": "http://a:1,http://b:2"}, {"engine": ["http://a:1", "http://b:2"]}),
    ("sft", {"bf16": True}, {"dtype": "bfloat16"}),
    ("sft", {"bf16": "false"}, {"dtype": "float32"}),
    ("sft", {"torch_dtype": "torch.bfloat16"}, {"param_dtype": "bfloat16"}),
    (
        "sft",
        {"model_init_kwargs": '{"dtype": "bfloat16", "attn_implementation": "sdpa"}'},
        {"param_dtype": "bfloat16"},
    ),
    ("sft", {"torch_dtype": "auto"}, {"param_dtype": "auto"}),
    ("sft", {"optim": "adamw_bnb_8bit"}, {"optim": "adamw_8bit"}),
    ("sft", {"optim": "paged_adamw"}, {"optim": "paged_adamw_32bit"}),
    ("sft", {"warmup_ratio": 0.1, "max_steps": 30}, {"warmup_steps": 3}),
    (
        "sft",
        {"warmup_steps": 0.25, "max_steps": 30, "logging_steps": 0.1},
        {"warmup_steps": 8, "logging_steps": 3},
    ),
    ("sft", {"lr_scheduler_type": "constant_with_warmup"}, {"lr_scheduler_type": "constant"}),
    ("sft", {"assistant_only_loss": True}, {"train_on": "assistant"}),
    ("sft", {"completion_only_loss": False}, {"train_on": "all"}),
    (
        "sft",
        {"model_name_or_path": "starter", "dataset_name": "a/b", "dataset_config": "c"},
        {"model": "starter", "dataset": "a/b:c"},
    ),
    (
        "sft",
        {"datasets": [{"path": "a.jsonl"}, {"path": "b.jsonl", "split": "train"}]},
        {"dataset": "a.jsonl,b.jsonl"},
    ),
    ("sft", {"resume_from_checkpoint": True}, {"resume": True}),
    ("sft", {"resume_from_checkpoint": "out/checkpoint-3", "output_dir": "out"}, {"resume": True}),
    ("sft", {"eval_strategy": "steps"}, {"eval_steps": 10}),
    ("sft", {"evaluation_strategy": "steps", "eval_steps": 7}, {"eval_steps": 7}),
    ("sft", {"save_strategy": False}, {"save_steps": 0}),
    (
        "sft",
        {"optim": "adamw_torch", "use_cpu": True, "activation_checkpointing": True},
        {"device": "cpu", "gradient_checkpointing": True},
    ),
    ("sft", {"report_to": "all"}, {"report_to": ["tensorboard", "wandb", "trackio"]}),
    ("grpo", {"loss_type": "dr_grpo"}, {"loss_aggregation": "token_sum_over_const"}),
    (
        "grpo",
        {"loss_type": "dapo", "scale_rewards": True},
        {"loss_aggregation": "token_mean", "scale_rewards": "group"},
    ),
    ("cispo", {"loss_type": "cispo"}, {"loss_aggregation": None}),
    ("gspo", {"importance_sampling_level": "sequence"}, {}),
    (
        "grpo",
        {
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_max": 2.0,
        },
        {"importance_sampling_correction": "sequence_mask", "importance_sampling_cap": 2.0},
    ),
    (
        "cispo",
        {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_cap": 4},
        {"importance_sampling_correction": "none", "importance_sampling_cap": 4.0},
    ),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}, {"rpo_alpha": 0.5}),
    ("robust_dpo", {"loss_type": "robust", "label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    (
        "ppo",
        {"kl_coef": 0.1, "cliprange": 0.3, "num_ppo_epochs": 4},
        {"beta": 0.1, "epsilon": 0.3, "num_iterations": 4},
    ),
    (
        "online_dpo",
        {"max_new_tokens": 32, "beta": [0.2]},
        {"max_completion_length": 32, "beta": 0.2},
    ),
]


@pytest.mark.parametrize(
    ("algorithm", "given", "want"), TRANSLATED, ids=lambda value: str(value)[:60]
)
def test_their_names_become_ours(algorithm, given, want, capsys):
    """One line for every name that is not ours, and none for the others."""
    config = built(algorithm, **given)
    assert {name: getattr(config, name) for name in want} == want
    said = re.findall(r"^note: (\w+): ", capsys.readouterr().err, re.MULTILINE)
    assert said == [name for name in given if name not in FIELDS]


REFUSED = [
    (
        "grpo",
        {"reward_funcs": "exact", "rewards": ["math"]},
        "`reward_funcs` = exact is rewards = [exact] here, and rewards = [math]",
    ),
    (
        "grpo",
        {"per_device_train_batch_size": 8, "prompts_per_step": 3},
        "is prompts_per_step = 1 here",
    ),
    (
        "grpo",
        {"per_device_train_batch_size": 6},
        "6 x 1 x 1 = 6 completions are no whole number of groups of 8",
    ),
    ("grpo", {"gradient_accumulation_steps": 2}, "multiplies per_device_train_batch_size"),
    (
        "grpo",
        {"per_device_train_batch_size": 8, "steps_per_generation": 4},
        "never several on parts",
    ),
    ("sft", {"bf16": True, "dtype": "float32"}, "`bf16` = true is dtype = bfloat16 here"),
    ("sft", {"max_new_tokens": 3, "response_length": 4}, "`max_new_tokens` makes it 3"),
    ("sft", {"warmup_ratio": 0.1}, "max_steps is not given"),
    ("sft", {"optim": "adafactor"}, "AdamW"),
    ("sft", {"lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
    ("sft", {"save_strategy": "epoch"}, "save_steps counts steps"),
    ("sft", {"loss_type": "dft"}, "`dft` is not the loss of sft"),
    (
        "sft",
        {"resume_from_checkpoint": "elsewhere/checkpoint-3", "output_dir": "out"},
        "own output_dir",
    ),
    ("sft", {"datasets": [{"path": "a", "fraction": 0.3}]}, "`fraction` of a data set"),
    ("sft", {"model_revision": "v2"}, "revision"),
    ("grpo", {"loss_type": "cispo"}, "Run: laurel train cispo"),
    ("grpo", {"loss_type": "sapo"}, "Choose from: grpo, dapo, bnpo, dr_grpo, cispo"),
    ("dr_grpo", {"loss_type": "dapo"}, "Run: laurel train grpo"),
    ("grpo", {"importance_sampling_level": "sequence"}, "Run: laurel train gspo"),
    ("grpo", {"vllm_importance_sampling_mode": "token_mask"}, "Near it: token_truncate"),
    ("grpo", {"vllm_importance_sampling_clip_min": 0.5}, "importance_sampling_cap is the bound"),
    ("grpo", {"reward_funcs": ["get_soft_overlong_punishment"]}, "overlong_buffer: 256"),
    ("dpo", {"loss_type": "ipo"}, "Run: laurel train ipo"),
    ("dpo", {"loss_type": ["hinge"]}, "Near it: dpo"),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 1]}, "has the weight 1"),
    ("grpo", {"multi_objective_aggregation": "normalize_then_sum"}, "summed"),
    ("sft", {"push_to_hub": True}, "unknown option `push_to_hub`. Nothing is sent to the hub"),
    (
        "grpo",
        {"vllm_tensor_parallel_size": 2, "fp16": True},
        "unknown options `vllm_tensor_parallel_size`, `fp16`. `vllm_tensor_parallel_size`: Sampling",
    ),
]


@pytest.mark.parametrize(("algorithm", "given", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_contradictions_and_what_there_is_not_are_errors(algorithm, given, said):
    with pytest.raises(UsageError) as caught:
        built(algorithm, **given)
    assert said in str(caught.value)


def test_every_absent_name_says_what_to_do():
    """By its own row, never by likeness."""
    for name, row in TABLE.items():
        if row.kind == "absent":
            with pytest.raises(UsageError) as caught:
                build_config({name: 1})
            assert str(caught.value) == f"configuration: unknown option `{name}`. {row.say}"


def test_without_an_algorithm_what_depends_on_it_is_refused():
    """TrainConfig(...) in Python does not know whether rows or completions are counted; the rest it
    translates.
    """
    assert TrainConfig(reward_funcs=["exact"], bf16=True).rewards == ["exact"]
    for given in ({"per_device_train_batch_size": 8}, {"loss_type": "dapo"}):
        with pytest.raises(UsageError, match="depends on the algorithm"):
            TrainConfig(**given)


def test_errors_in_python_are_ours():
    for kind, given, said in (
        (
            TrainConfig,
            {"lerning_rate": 1},
            "TrainConfig: unknown option `lerning_rate`. Did you mean `learning_rate`?",
        ),
        (TrainConfig, {"seed": -1, "max_steps": "x"}, "option `seed` = -1: "),
        (
            EvalConfig,
            {"temprature": 1},
            "EvalConfig: unknown option `temprature`. Did you mean `temperature`?",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            kind(**given)
        assert said in str(caught.value)


OTHERS = (
    "actor_rollout_ref",
    "n_samples_per_prompt",
    "rollout_batch_size",
    "micro_train_batch_size",
    "kl_loss_coef",
    "kl_loss_type",
    "clip_ratio",
    "clip_ratio_low",
    "clip_ratio_high",
    "clip_ratio_c",
    "use_kl_loss",
    "ppo_mini_batch_size",
    "ppo_epochs",
    "adv_estimator",
    "gen_batch_size",
    "max_response_length",
    "n_rollouts",
    "target_kl",
    "value_clip",
    "eps_clip",
    "generate_max_len",
    "prompt_max_len",
    "actor_learning_rate",
    "critic_learning_rate",
    "beta3",
    "adam_beta3",
    "top_n",
    "data_seed",
    "entropy_coef_start",
    "lora_rank_pattern",
    "min_length",
    "epsilon_c",
    "scale_reward_batch",
    "eval_packing_2",
    "gamma_2",
    "cpo_beta",
    "discopop_beta",
)
"""Names of other trainers and of none, each near to something."""


def test_no_likeness_points_to_another_meaning():
    """Every name of TRL's and of others, as if there were no table: no hint, but for those that
    mean the same (and AdamW's `betas`).
    """
    hints = {
        name: misspelt(name, TrainConfig.model_fields)
        for name in [*TABLE, *OTHERS]
        if name not in FIELDS
    }
    assert {name: hint for name, hint in hints.items() if hint} == {
        "datasets": "dataset",
        "ent_coef": "entropy_coef",
        "betas": "beta",
    }
    assert "adam_beta1 and adam_beta2" in TABLE["betas"].say


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lerning_rate", "learning_rate"),
        ("learningrate", "learning_rate"),
        ("max_step", "max_steps"),
        ("temprature", "temperature"),
        ("num_generation", "num_generations"),
        ("ouput_dir", "output_dir"),
        ("reward", "rewards"),
        ("max_len", "max_length"),
        ("prompts_per_stpe", "prompts_per_step"),
        ("epsilonhigh", "epsilon_high"),
        ("entropy_coeff", "entropy_coef"),
        ("beta2", ""),
        ("top_n", ""),
        ("entropy_coef_min", ""),
        ("epsilon_low", ""),
        ("lora_rank", ""),
    ],
)
def test_a_slip_is_named_and_another_name_is_not(wrong, right):
    assert misspelt(wrong, TrainConfig.model_fields) == right


def test_a_hint_is_of_the_algorithm_at_hand(capsys):
    """`num_generation` is near an option of grpo, which sft has not."""
    for algorithm, hint in (
        ("grpo", "Did you mean `--num_generations`?"),
        ("sft", "`laurel train --help` tells"),
    ):
        assert main(["train", algorithm, "--num_generation", "2"]) == 2
        assert hint in capsys.readouterr().err
    with pytest.raises(UsageError) as caught:
        built("sft", num_generation=2)
    assert str(caught.value) == "configuration: unknown option `num_generation`."


def test_the_command_line_takes_their_names(tmp_path, capsys):
    """Alone, with values, as lists; over a file that has them, too: --rewards wins over its
    reward_funcs.
    """
    (tmp_path / "run.yaml").write_text(
        "reward_funcs: [exact]\nper_device_train_batch_size: 8\nnum_generations: 4\n"
    )
    words = [
        "train",
        "grpo",
        "--config",
        str(tmp_path / "run.yaml"),
        "--bf16",
        "--gradient-accumulation-steps",
        "2",
    ]
    assert main([*words, "--rewards", "math", "--print_config"]) == 0
    found = capsys.readouterr()
    config = yaml.safe_load(found.out)
    assert (config["rewards"], config["dtype"], config["prompts_per_step"]) == (
        ["math"],
        "bfloat16",
        4,
    )
    assert (
        "note: bf16: true -> dtype: bfloat16 (bf16 is dtype: bfloat16 here; weights stay float32.)"
        in found.err
    )
    assert main(["train", "grpo", "--reward_funcs", "exact", "mine.f", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["rewards"] == ["exact", "mine.f"]
    assert main(["train", "grpo", "--deepspeed", "zero3.json"]) == 2
    assert "unknown option `deepspeed`. The weights are in one piece" in capsys.readouterr().err


SCRIPT = """
model_name_or_path: starter
dataset_name: addition
reward_funcs: [addition]
output_dir: {out}
learning_rate: 5e-6
max_steps: 4
num_iterations: 2
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
num_generations: 4
warmup_ratio: 0.5
bf16: false
gradient_checkpointing_kwargs: {{use_reentrant: false}}
use_vllm: true
fp16: false
packing: false
epsilon_high: null
eval_strategy: no
env: {{TOKEN: secret}}
"""


def ported(path, *words, capsys, algorithm="grpo"):
    """(exit code, what is printed before the configuration, the configuration) of --from-trl with
    --print_config.
    """
    code = main(["train", algorithm, "--from-trl", str(path), *words, "--print_config"])
    said = capsys.readouterr()
    at = said.out.find("\nmodel: ")
    return code, said.out[:at] + said.err, yaml.safe_load(said.out[at:]) if code == 0 else {}


def test_a_file_of_theirs(tmp_path, capsys):
    """Written values are read as TRL reads them, unwritten ones are TRL's, the rest is said to be
    left out; the command line wins.
    """
    (tmp_path / "s.yaml").write_text(SCRIPT.format(out=tmp_path / "run"))
    code, said, config = ported(tmp_path / "s.yaml", capsys=capsys)
    assert code == 0
    want = {
        "model": "starter",
        "dataset": "addition",
        "rewards": ["addition"],
        "learning_rate": 5e-6,
        "max_steps": 2,
        "prompts_per_step": 4,
        "num_generations": 4,
        "warmup_steps": 1,
        "dtype": "float32",
        "eval_steps": 0,
        "num_iterations": 2,
        # TRL's defaults
        "lr_scheduler_type": "linear",
        "seed": 42,
        "max_completion_length": 512,
        "loss_aggregation": "token_mean",
        "eval_size": 0,
        "beta": 0.0,
        "epsilon": 0.2,
        "scale_rewards": "group",
    }
    assert {name: config[name] for name in want} == want
    assert (
        "use_vllm: true -> left out (Sampling is laurel's own" in said
        and "gradient_checkpointing_kwargs" in said
    )
    assert "max_completion_length: 512 (laurel's own would be 256)" in said
    assert (
        "secret" not in said
        and "env: ... -> left out" in said
        and "packing" not in said.partition("left out:")[2]
    )
    _, _, config = ported(
        tmp_path / "s.yaml",
        "--max_completion_length",
        "9",
        "--num_generations",
        "8",
        "--dtype",
        "bfloat16",
        capsys=capsys,
    )
    assert (config["max_completion_length"], config["prompts_per_step"], config["dtype"]) == (
        9,
        2,
        "bfloat16",
    )
    _, _, config = ported(tmp_path / "s.yaml", "--gradient_accumulation_steps", "4", capsys=capsys)
    assert config["prompts_per_step"] == 8
    (tmp_path / "s.yaml").write_text(
        SCRIPT.format(out=tmp_path / "run")
        + "save_strategy: epoch\nlr_scheduler_kwargs: {min_lr: 0.1}\n"
    )
    code, said, config = ported(tmp_path / "s.yaml", "--lr_scheduler_type", "cosine", capsys=capsys)
    assert (
        code == 0
        and config["save_steps"] == 0
        and "save_strategy: epoch -> left out (save_steps counts steps" in said
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("packing: true\nneftune_noise_alpha: 5\n", "`packing: true`: Rows are not packed"),
        ("top_entropy_quantile: 0.2\n", "results would differ"),
        ("loss_type: vespo\n", "loss_type: `vespo` is not the loss of grpo"),
        ("frobnicate: 3\n", "`frobnicate`: neither a name of TRL 1.16 nor of laurel"),
        ("dtype: float16\n", "float16 is not computed here"),
        ("optim: sgd\n", "AdamW"),
    ],
)
def test_a_file_that_asks_for_what_there_is_not(more, said, tmp_path, capsys):
    """Before anything is loaded, with every such name."""
    (tmp_path / "s.yaml").write_text(SCRIPT.format(out=tmp_path / "run") + more)
    code, printed, _ = ported(tmp_path / "s.yaml", capsys=capsys)
    assert code == 2 and said in printed


def test_a_saved_file_asks_only_for_what_differs(tmp_path, capsys):
    """A saved JSON holds every name; those at TRL's defaults are not the user's, and model and data
    must be named.
    """
    saved = {
        **defaults_of("grpo"),
        **DUMPED,
        "steps_per_generation": 1,
        "generation_batch_size": 8,
        "max_steps": 3,
        "beta": 0.04,
    }
    saved["accelerator_config"] = {"split_batches": False}
    (tmp_path / "training_args.json").write_text(json.dumps(saved))
    code, said, _ = ported(tmp_path / "training_args.json", capsys=capsys)
    assert code == 2 and "the file names no model. Give --model." in said
    words = ["--model", "starter", "--dataset", "addition"]
    code, said, config = ported(tmp_path / "training_args.json", *words, capsys=capsys)
    assert code == 0 and (config["beta"], config["max_steps"], config["prompts_per_step"]) == (
        0.04,
        3,
        1,
    )
    read = said.partition("read:\n")[2].partition("TRL's defaults")[0]
    became = [line.split(":")[0].strip() for line in read.splitlines() if "-> as here" not in line]
    assert became == ["max_steps", "beta"]


def test_what_a_trainer_does_without_an_option(tmp_path, capsys):
    """SFT: dropout as in the model, every token of messages; LoRA: peft's modules and dropout; a
    scorer without checkpointing.
    """
    from laurel.model.scratch import save_scratch

    tiny = save_scratch(tmp_path / "tiny", hidden_size=32, num_hidden_layers=1)
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "1", "completion": "2"}) + "\n")
    script = (
        f"model_name_or_path: {tiny}\nmax_steps: 1\nuse_peft: true\ngradient_checkpointing:"
        " true\ndataset_name: "
    )
    for name, on in (("chat.jsonl", "all"), ("pairs.jsonl", None)):
        (tmp_path / "s.yaml").write_text(script + name)  # beside the script, as it is called there
        code, said, config = ported(tmp_path / "s.yaml", algorithm="sft", capsys=capsys)
        assert code == 0, said
        assert (config["train_on"], config["disable_dropout"], config["lora_dropout"]) == (
            on,
            False,
            0.05,
        )
        assert config["lora_target_modules"] == ["q_proj", "v_proj"] and config["dataset"] == str(
            tmp_path / name
        )
    code, said, config = ported(tmp_path / "s.yaml", algorithm="reward", capsys=capsys)
    assert (
        code == 0
        and config["gradient_checkpointing"] is False
        and "A scorer is trained without it" in said
    )
    assert (config["learning_rate"], config["prompts_per_step"]) == (1e-4, 8)
    code, said, _ = ported(tmp_path / "s.yaml", algorithm="ppo", capsys=capsys)
    assert code == 2 and "TRL 1.16 has no trainer for `ppo`" in said


LOSSES = {
    "gspo": "loss_type: grpo\nimportance_sampling_level: sequence\n",
    "cispo": "loss_type: cispo\nepsilon_high: 5\n",
    "dr_grpo": "loss_type: dr_grpo\nscale_rewards: false\n",
    "simpo": "loss_type: simpo\n",
    "ipo": "loss_type: ipo\n",
    "robust_dpo": "loss_type: robust\n",
}
"""What a file must say for rows that are not a trainer's default loss."""


@pytest.mark.parametrize("algorithm", TRAINERS)
def test_the_shortest_file_of_every_trainer(algorithm, tmp_path, capsys):
    """Model, data and a length: everything else is a default of TRL's that the row takes."""
    script = "model_name_or_path: starter\ndataset_name: addition\nmax_steps: 1\n"
    (tmp_path / "s.yaml").write_text(script + LOSSES.get(algorithm, ""))
    code, said, _ = ported(tmp_path / "s.yaml", algorithm=algorithm, capsys=capsys)
    assert code == 0, said
    if algorithm in LOSSES:  # without it the file asks for another loss, TRL's default
        (tmp_path / "s.yaml").write_text(script)
        code, said, _ = ported(tmp_path / "s.yaml", algorithm=algorithm, capsys=capsys)
        assert code == 2 and re.search("loss_type|importance_sampling_level", said)


def test_where_the_mathematics_is_not_quite_the_same_it_is_said(tmp_path, capsys):
    """Masked completions in a mean over rows; TRL's margins and its ORPO."""
    for algorithm, more, said in (
        ("grpo", "mask_truncated_completions: true\nloss_type: grpo\n", "masked completions"),
        ("ipo", "loss_type: ipo\n", "beta is on another scale"),
        ("orpo", "", "likelihood of the prompt"),
        ("dpo", "loss_type: [sigmoid, sft]\n", "TRL's sft is a mean over all chosen tokens"),
    ):
        (tmp_path / "s.yaml").write_text(
            "model_name_or_path: starter\ndataset_name: addition\nmax_steps: 1\n" + more
        )
        code, printed, _ = ported(tmp_path / "s.yaml", algorithm=algorithm, capsys=capsys)
        assert code == 0 and said in printed
    (tmp_path / "s.yaml").write_text(
        "model_name_or_path: a\ndataset_name: b\nmax_steps: 1\nmask_truncated_completions: true\n"
    )
    assert (
        "masked completions" not in ported(tmp_path / "s.yaml", capsys=capsys)[1]
    )  # a mean over tokens


ENGINE = """
model_name_or_path: starter
dataset_name: addition
reward_funcs: [addition]
use_vllm: {use}
"""


@pytest.mark.parametrize(
    ("use", "more", "want"),
    [
        ("true", "", ("sequence_mask", 3.0)),
        ("true", "vllm_importance_sampling_mode: token_truncate", ("token_truncate", 3.0)),
        ("true", "vllm_importance_sampling_correction: false", ("none", 3.0)),
        ("true", "vllm_importance_sampling_clip_max: null", ("sequence_mask", 1e9)),
        ("true", "vllm_importance_sampling_cap: 2", ("sequence_mask", 2.0)),
        ("false", "", ("auto", 3.0)),
        ("false", "vllm_importance_sampling_mode: token_mask", ("auto", 3.0)),
        ("false", "vllm_importance_sampling_clip_min: 0.5", ("auto", 3.0)),
    ],
)
def test_what_vllm_draws_is_corrected_as_trl_corrects_it(use, more, want, tmp_path, capsys):
    """Written or by TRL's default where vLLM samples; where it does not, TRL corrects nothing."""
    (tmp_path / "trl.yaml").write_text(ENGINE.format(use=use) + more + "\n")
    code, said, config = ported(tmp_path / "trl.yaml", capsys=capsys)
    assert code == 0, said
    found = config["importance_sampling_correction"], config["importance_sampling_cap"]
    assert found == want


def test_a_mode_that_there_is_not_stops_a_port_with_vllm(tmp_path, capsys):
    for more, said in (
        ("vllm_importance_sampling_mode: sequence_truncate", "Near it: sequence_mask"),
        ("vllm_importance_sampling_clip_min: 0.5", "importance_sampling_cap is the bound"),
    ):
        (tmp_path / "trl.yaml").write_text(ENGINE.format(use="true") + more + "\n")
        code, printed, _ = ported(tmp_path / "trl.yaml", capsys=capsys)
        assert code == 2 and said in printed


def test_a_written_null_is_not_silence(tmp_path, capsys):
    """max_length: null is no limit in TRL; silence is 1024."""
    script = "model_name_or_path: starter\ndataset_name: addition\nmax_steps: 1\n"
    for more, limit in (("", 1024), ("max_length: null\n", 1 << 20)):
        (tmp_path / "s.yaml").write_text(script + more)
        assert ported(tmp_path / "s.yaml", algorithm="sft", capsys=capsys)[2]["max_length"] == limit


def test_a_pipeline_takes_their_names_too(tmp_path, capsys):
    """In the section of a stage, for that stage's algorithm; what the pipeline fills in stays its
    own.
    """
    from laurel.pipeline.plan import check_plan

    plan = check_plan(
        {"sft": {"dataset": "addition", "per_device_train_batch_size": 4, "bf16": True}},
        "plan.yaml",
    )
    assert plan.sft == {"dataset": "addition", "prompts_per_step": 4, "dtype": "bfloat16"}
    assert capsys.readouterr().err.count("note: bf16") == 1
    with pytest.raises(UsageError, match="`rewards` is filled in by the pipeline"):
        check_plan({"policy": {"reward_funcs": ["exact"]}}, "plan.yaml")
