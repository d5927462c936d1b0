"""Real text through the command line: GSM8K's worked solutions, and conversations under every
mask.
"""

import pytest

from laurel.cli.main import main
from laurel.core.run import Run

STORIES = "models/tinystories-656k"


def held_out_losses(folder):
    return [line["eval/nll"] for line in Run(folder).metrics() if "eval/nll" in line]


def test_sft_on_gsm8k_lowers_the_held_out_loss_per_answer_token(shared, tmp_path):
    """Question -> answer, the 400 shortest rows: the loss on rows held out falls by more than half
    a nat from step 4 to 8.
    """
    rows = shared("data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(sorted(rows, key=len)[:400]), encoding="utf-8")
    words = [
        "--model",
        str(shared(STORIES)),
        "--dataset",
        str(tmp_path / "rows.jsonl"),
        "--max_steps",
        "8",
        "--prompts_per_step",
        "8",
    ]
    words += [
        "--learning_rate",
        "3e-3",
        "--eval_size",
        "4",
        "--eval_steps",
        "4",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", "sft", *words]) == 0
    losses = held_out_losses(tmp_path / "run")
    assert len(losses) == 2 and losses[1] < losses[0] - 0.5


@pytest.mark.parametrize("train_on", ["assistant", "last", "all", "no_tags"])
def test_real_conversations_train_under_every_mask(train_on, shared, tmp_path, capsys):
    """ShareGPT's shape is read, the template is laurel's own, and the first row is shown with its
    targets marked.
    """
    data = shared("data/chats/dummy_conversation.json")
    words = [
        "--model",
        str(shared(STORIES)),
        "--dataset",
        str(data),
        "--train_on",
        train_on,
        "--learning_rate",
        "3e-3",
    ]
    words += [
        "--max_steps",
        "3",
        "--prompts_per_step",
        "8",
        "--eval_size",
        "8",
        "--eval_steps",
        "1",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", "sft", *words]) == 0
    losses = held_out_losses(tmp_path / "run")
    assert losses[-1] < losses[0]
    shown = capsys.readouterr().out.partition("between « »:")[2]
    assert (
        shown.count("«")
        == shown.count("»")
        == {"assistant": 2, "last": 1, "all": 1, "no_tags": 4}[train_on]
    )
