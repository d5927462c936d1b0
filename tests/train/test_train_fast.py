"""Every row of the table: one update with packed tokens, shared prompts and the fused head has the
general path's gradient.
"""

from dataclasses import replace

import pytest
import torch
from arithmetic import agree
from peft import LoraConfig, get_peft_model

from laurel.core.metrics import Sums
from laurel.fast import packed
from laurel.model.critic import own_critic
from laurel.model.discriminator import make_discriminator
from laurel.model.ilql import new_heads
from laurel.model.policy import Policy, Reference
from laurel.model.scorer import Scorer, load_scorer
from laurel.model.scratch import save_scratch
from laurel.rollout.pack import pack
from laurel.train import loop
from laurel.train.algorithms import ALGORITHMS
from laurel.train.session import State
from laurel.verify.sampled import TEMPERATURE, G, H, draw_groups, make_llama
from laurel.verify.world import Recorder, ascent_of, setup_of

SPOKEN = [
    name for name, row in ALGORITHMS.items() if not row.trained.head and not row.source.population
]
SCORED = [name for name, row in ALGORITHMS.items() if row.trained.head]


@pytest.fixture(params=["whole", "lora"], scope="module")
def llama(request):
    made = make_llama()
    if request.param == "lora":
        adapters = LoraConfig(
            r=2, target_modules="all-linear", exclude_modules=["lm_head"], init_lora_weights=False
        )
        torch.manual_seed(0)
        made = replace(
            made,
            policy=Policy(
                get_peft_model(made.policy.model, adapters).eval(), made.policy.tokenizer
            ),
        )
    return made


@pytest.fixture
def general(monkeypatch):
    """Switch to padded rows and the head that autograd differentiates, for what is called
    inside.
    """

    def switch(on):
        for module in ("fast.packed", "model.policy", "model.scorer"):
            monkeypatch.setattr(
                f"laurel.{module}.can_encode", (lambda body: False) if on else original_can_encode
            )
        monkeypatch.setattr(
            Policy, "readout", property(lambda policy: policy.head) if on else readout
        )

    return switch


original_can_encode, readout = packed.can_encode, Policy.readout


def gradient(llama, name, groups, reference, budget):
    """One update, far behind any warm-up: the ascent direction of everything trained."""
    own = (
        {"temperature": TEMPERATURE, "max_completion_length": H, "num_generations": G}
        if ALGORITHMS[name].source.sampled
        else {}
    )
    setup = setup_of(name, llama.policy, lambda: reference, None, token_budget=budget, **own)
    beside = {"critic": own_critic, "discriminator": make_discriminator}
    if ALGORITHMS[name].trained.auxiliary == "heads":
        setup.auxiliary = new_heads(llama.policy, target_update=0.1, decode_beta=0.0)
    elif ALGORITHMS[name].trained.auxiliary:
        setup.auxiliary = beside[ALGORITHMS[name].trained.auxiliary](llama.policy)
        torch.nn.init.normal_(
            next(p for n, p in setup.auxiliary.trainable().items() if "head.weight" in n),
            generator=coin(),
        )
    setup.optimizer, state = Recorder(list(setup.trainable().values())), State(step=10_000)
    loop.update(setup, state, loop.weigh(setup, state, groups, Sums()), Sums())
    return torch.cat([g.flatten() for g in ascent_of(setup)]).double()


def coin():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def reference(llama):
    """Near the policy and not equal to it: an objective may have a corner there."""
    frozen = Reference(llama.policy, adapters_off=False)
    with torch.no_grad():
        for parameter in frozen.policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=coin()) * 0.05)
    return frozen


def relative(ours, theirs):
    assert float(theirs.norm()) > 0
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", SPOKEN)
def test_one_update_of_a_policy(name, llama, reference, general):
    assert llama.policy.packs
    groups = draw_groups(llama, 3, 0, 0)
    found = []
    for on in (False, True):
        general(on)
        found += [gradient(llama, name, groups, reference, budget) for budget in (1 << 14, 40)]
    assert max(relative(fast, found[2]) for fast in found[:2]) < 1e-5


@pytest.mark.parametrize("name", SCORED)
def test_one_update_of_a_scorer(name, llama, general, tmp_path):
    row = ALGORITHMS[name]
    save_scratch(
        tmp_path, alphabet="ab", hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    scorer = load_scorer(
        str(tmp_path), num_labels=row.trained.head, device="cpu", language=row.trained.head == 1
    )
    assert isinstance(scorer, Scorer) and scorer.packs
    several = {"rankings": (-1.0, -2.0, -3.0, -2.0), "pairs": (1.0, -1.0)}.get(
        "pairs" if name == "reward" else row.source.name, (1.0,)
    )
    groups = [
        replace(g, samples=g.samples[: len(several)], rewards=several)
        for g in draw_groups(llama, 3, 0, 0)
    ]
    found = []
    for on in (False, True):
        general(on)
        setup = setup_of(name, scorer, None, Recorder(list(scorer.trainable().values())))
        setup = replace(setup, row=replace(row, targets=None))
        batch = loop.weigh(setup, State(step=1), groups, Sums())
        batch = batch.replace(label_NT=torch.where(batch.loss_mask_NT, 1.0, 0.0))
        loop.update(setup, State(step=1), batch, Sums())
        found.append(torch.cat([g.flatten() for g in ascent_of(setup)]).double())
    assert relative(*found) < 1e-5


def test_a_reference_with_adapters_off_reads_the_base(llama, general):
    batch = pack(draw_groups(llama, 2, 0, 0))
    reference = Reference(llama.policy, adapters_off=llama.policy.model is not llama.policy.causal)
    said = []
    for on in (False, True):
        general(on)
        said.append(reference.logp(batch))
    agree(*said)
