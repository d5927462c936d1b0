"""What a run chooses and tries before its first step: room for logits, and the samples that the
start is checked with.
"""

import pytest
import torch
from toy import make_toy, toy_config

from laurel.core.metrics import Sums
from laurel.fast import products
from laurel.model.policy import Policy
from laurel.train import loop, setup
from laurel.train.checks import probe_sizes
from laurel.train.loop import train
from laurel.train.setup import prepare_session


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_the_room_for_logits_is_recorded_and_kept_by_a_resumed_run(toy, tmp_path, monkeypatch):
    """Another machine, or less free memory, changes nothing of a run that has begun; policy and
    reference share the number.
    """
    asked = []

    def room(device, coming, useful):
        asked.append((coming, useful))
        return 3 << 20 if len(asked) == 1 else 7 << 20

    monkeypatch.setattr(setup, "logit_room", room)
    run = train("grpo", toy_config(toy, tmp_path / "run", max_steps=1, beta=0.1), quiet=True)
    assert run.facts["logit_bytes"] == 3 << 20
    again, _ = prepare_session(
        "grpo", toy_config(toy, tmp_path / "run", max_steps=2, beta=0.1, resume=True)
    )
    assert (
        again.policy.room == again.reference.policy.room == 3 << 20
        and again.run.facts["logit_bytes"] == 3 << 20
    )
    again.run.close()
    coming, useful = asked[0]
    assert (
        coming == 3 * 4 * again.policy.num_parameters
    )  # float32 gradients, and two moments of AdamW
    assert useful == 2048 * 4 * again.policy.causal.get_output_embeddings().weight.shape[0]


def test_no_bit_of_a_run_depends_on_the_room(toy, tmp_path, monkeypatch):
    """Logits kept from forward to backward, or computed again: the same losses."""
    losses = []
    for room in (1, 1 << 30):
        monkeypatch.setattr(setup, "logit_room", lambda *of, room=room: room)
        run = train(
            "sft", toy_config(toy, tmp_path / str(room), reward=None, max_steps=3), quiet=True
        )
        losses.append([line["loss"] for line in run.metrics()])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_the_head_is_looked_at_once(toy, tmp_path, monkeypatch):
    """A reference is a copy of the policy: what was found out of the one holds of the other."""
    real, looked = Policy._logits_are_head_of_body, []
    monkeypatch.setattr(
        Policy, "_logits_are_head_of_body", lambda self: looked.append(self) or real(self)
    )
    made, _ = prepare_session("grpo", toy_config(toy, tmp_path, beta=0.1))
    assert (
        len(looked) == 1 and made.reference.policy.whole_logits is made.policy.whole_logits is False
    )


TRIED = {
    (4, 8, 16, None): (8, 4),  # 32 samples of 16 tokens are 512
    (8, 8, 64, None): (2, 4),
    (8, 8, 256, None): (1, 4),  # a tenth of 64 samples: 6, of which a prompt takes 4
    (64, 16, 256, None): (8, 4),  # a tenth of the step: 102 samples
    (8, 8, 1024, None): (1, 4),
    (1, 8, 4096, None): (1, 2),  # one prompt, two samples: fewer compare nothing
    (8, 8, 64, 4): (1, 4),  # an episode of four turns
}


@pytest.mark.parametrize("step", TRIED, ids=str)
def test_the_start_costs_a_tenth_of_a_step_or_512_tokens(step, toy, tmp_path):
    prompts, generations, length, turns = step
    sizes = {
        "prompts_per_step": prompts,
        "num_generations": generations,
        "max_completion_length": length,
    }
    assert probe_sizes(toy_config(toy, tmp_path, max_turns=turns, **sizes)) == TRIED[step]


def test_a_run_is_checked_with_so_many_samples(toy, tmp_path, monkeypatch):
    """What is rolled out before the first step."""
    from laurel.train import checks
    from laurel.train.progress import Progress

    seen, real = [], checks.rollout
    monkeypatch.setattr(checks, "TRIED", 1)
    monkeypatch.setattr(
        checks,
        "rollout",
        lambda policy, rows, draw: (
            seen.append((len(rows), draw.num_generations)) or real(policy, rows, draw)
        ),
    )
    made, state = prepare_session(
        "grpo", toy_config(toy, tmp_path, prompts_per_step=4, num_generations=8)
    )
    with Progress(made, quiet=True) as progress:
        checks.show_and_check_start(made, 0, progress)
    assert seen == [(1, 3)]
    loop.step(made, state, Sums())


def test_a_resumed_run_multiplies_with_the_library_it_began_with(toy, tmp_path, monkeypatch):
    """The first start finds oneDNN faster, says so and writes it down; when it goes on a
    measurement would say otherwise.
    """
    monkeypatch.setattr(products, "NARROW", 1)
    was = torch.backends.mkldnn.matmul.fp32_precision
    try:
        for resume, first in ((False, 2.0), (True, 0.5)):
            monkeypatch.setattr(
                products,
                "cached_choice",
                lambda *shape, first=first: products.pick_quickest(
                    {"default": first, "onednn/tf32": 1.0}
                ),
            )
            setup, _ = prepare_session(
                "sft", toy_config(toy, tmp_path / "run", reward=None, resume=resume)
            )
            assert (
                setup.run.facts["products"] == "onednn/tf32"
                and torch.backends.mkldnn.matmul.fp32_precision == "tf32"
            )
            assert any(line.startswith("float32 products by onednn/tf32") for line in setup.notes)
            setup.run.close()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = was
