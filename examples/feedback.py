"""From clicks to a reward model: a batch, the votes of three people (here by program, else in their
browsers), an export with weights.

python examples/feedback.py, then: laurel train reward --model scratch --dataset
feedback/pairs.jsonl
"""

from pathlib import Path

from laurel_feedback.exchange.export import export
from laurel_feedback.exchange.load import import_file
from laurel_feedback.statistics.batches import open_batch
from laurel_feedback.store import accounts
from laurel_feedback.store.assign import Answer, TaskQueue
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store

folder = Path("feedback")
folder.mkdir(exist_ok=True)
rows = [
    f'{{"prompt": "{a} + {b} = ", "responses": ["{a + b}", "{a + b + 1}"]}}'
    for a in range(4)
    for b in range(4)
]
(folder / "rows.jsonl").write_text("\n".join(rows))

store = Store(str(folder / "feedback.db"))
made = import_file(store, folder / "rows.jsonl", "sums", settings=BatchSettings(target_votes=3))
open_batch(store, made.batch, actor="example")
for name in ("ada", "bob", "cyd"):
    _, token = accounts.invite_annotator(store, pseudonym=name)
    who = accounts.session_of(store, accounts.accept_invitation(store, token))
    accounts.consent(store, who.annotator, "keep 1")
    queue = TaskQueue(store, who.annotator, made.batch)
    while (sample := queue.next()) is not None:
        right = sample.order.index(
            0
        )  # the slot that shows the sum that is right; cyd always takes the first
        queue.submit(
            sample.id,
            Answer(rating=1 if name == "cyd" or right == 0 else 4),
            key=f"{name} {sample.seq}",
        )
exported = export(store, ["sums"], "preferences", folder / "pairs.jsonl")
print(exported.files, exported.rows, exported.held_out)
store.close()
