"""The table and its options: defaults filled in, contradictions and strangers refused before a
weight is loaded.
"""

import inspect

import pytest
from toy import make_toy, toy_config

from laurel.core.config import TrainConfig
from laurel.core.errors import UsageError
from laurel.objective.unit import AGGREGATIONS
from laurel.train.algorithms import ALGORITHMS
from laurel.train.binding import SUPPLIED, option_defaults
from laurel.train.options import defaults, resolve


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_default_resolves_and_is_a_field(name):
    resolved = resolve(name, TrainConfig())
    for option in defaults(name):
        assert option in TrainConfig.model_fields, option
    for function in (
        ALGORITHMS[name].weigh,
        ALGORITHMS[name].objective,
        AGGREGATIONS[resolved.loss_aggregation],
    ):
        for option in option_defaults(function):
            assert option in defaults(name) or option in TrainConfig.model_fields
    assert resolved.learning_rate is not None and resolved.loss_aggregation is not None


def test_every_optional_field_belongs_to_some_row():
    """T36, A19: no option is accepted and unused."""
    somewhere = set().union(*(defaults(name) for name in ALGORITHMS))
    free = {
        "stop_at",
        "eval_dataset",
        "chat_template",
        "lora_target_modules",
        "report_to",
        "num_train_epochs",
    }
    free |= {"metric_for_best_model", "greater_is_better", "early_stopping_patience"}
    for name, field in TrainConfig.model_fields.items():
        if field.default is None and name not in free:
            assert name in somewhere, name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sft", {"epsilon": 0.3}, "does not apply to `sft`"),
        ("grpo", {"train_on": "all"}, "does not apply to `grpo`"),
        ("rloo", {"epsilon": 0.1}, "does not apply to `rloo`"),
        ("grpo", {"num_generations": 1}, "at least 2"),
        ("grpo", {"temperature": 0.0}, "above 0"),
        ("grpo", {"temperature": -1.0}, "above 0"),
        ("grpo", {"top_p": 0.9}, "truncated sampling"),
        ("grpo", {"top_k": 5}, "truncated sampling"),
        ("grpo", {"disable_dropout": False}, "dropout"),
        ("grpo", {"beta": 0.1, "kl_estimator": "k1"}, "k1"),
        ("rloo", {"beta": 0.1, "kl_estimator": "k3"}, "k3"),
        ("grpo", {"beta": 0.1, "reference": "none"}, "reference"),
        ("dapo", {"overlong_buffer": 300}, "overlong_buffer"),
        ("grpo", {"delta": 0.5}, "delta"),
        ("cispo", {"epsilon_high": 0.2}, "caps the ratio"),
        ("gspo", {"loss_aggregation": "token_mean"}, "one ratio per sequence"),
        ("sft", {"loss_aggregation": "token_sum_over_const"}, "max_completion_length"),
        ("grpo", {"stop_at": 0.9}, "eval_steps"),
        ("grpo", {"max_turns": 3}, "environment"),
        ("ppo2", {}, "unknown algorithm"),
    ],
)
def test_T12_T13_T36_T44_contradictions_are_errors(name, options, message):
    """T12 (temperature), T13 (truncation), T36 (inapplicable), T44 (G = 1)."""
    with pytest.raises(UsageError, match=message):
        resolve(name, TrainConfig(**options))


def test_reference_exists_when_it_is_needed():
    assert resolve("grpo", TrainConfig()).reference == "none"
    assert resolve("grpo", TrainConfig(beta=0.1)).reference == "start"
    assert resolve("grpo", TrainConfig(reference="start")).reference == "start"


def test_rows_differ_only_in_what_the_table_says():
    """No algorithm is known by name outside the table: functions take tensors and options."""
    for row in ALGORITHMS.values():
        for function in (row.weigh, row.objective):
            names = set(inspect.signature(function).parameters)
            assert not names & {"algorithm", "name", "config"}
    assert {"running_mean"} == SUPPLIED


def test_bad_input_is_found_before_the_run_directory_is_made(tmp_path):
    """A reward that does not exist, a dataset that does not exist: UsageError, and nothing
    written.
    """
    from laurel.train.loop import train

    toy = make_toy(tmp_path)
    wrong = [
        {"rewards": ["no_such_reward"]},
        {"dataset": str(tmp_path / "none.jsonl")},
        {"env": "no_such_env"},
        {"model": "./no/such/model"},
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            train("grpo", toy_config(toy, tmp_path / "run", **options), quiet=True)
        assert not (tmp_path / "run").exists()
