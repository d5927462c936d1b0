"""Votes in a store, straight as rows: LLMFAO's, and small made-up ones."""

import csv
import json
import uuid

from sqlalchemy import insert, select

from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.tables import (
    Annotator,
    Assignment,
    Batch,
    Demographic,
    Item,
    Response,
    Vote,
)


def put(store, votes, *, items=None, name="batch", state="open", **settings):
    """A batch of `votes`, dicts with item, who and rating or ranking, by place; more of it: order,
    seconds, repeat, rationale, pasted, at.

    items: id -> dict with models, texts, prompt, kind, gold, harm; where it is missing there are
    two short answers of models x and y.
    """
    settings = BatchSettings(**settings)
    items = {**{vote["item"]: {} for vote in votes}, **(items or {})}
    with store.write() as session:
        batch = Batch(name=name, state=state, settings=settings.model_dump(), made_at=store.now())
        session.add(batch)
        session.flush()
        live = {}
        for vote in votes:
            live[vote["item"]] = live.get(vote["item"], 0) + (not vote.get("repeat"))
        rows, responses = [], []
        for place, (item, more) in enumerate(items.items()):
            texts = more.get("texts", ("one answer", "another longer answer"))
            models = more.get("models", ("x", "y", *"zuvw")[: len(texts)])
            kind = more.get("kind", "normal")
            target = max(settings.target_votes, live.get(item, 0)) if kind == "normal" else 10**6
            rows.append(
                {
                    "id": item,
                    "batch_id": batch.id,
                    "place": place,
                    "kind": kind,
                    "target": target,
                    "live": live.get(item, 0),
                    "prompt": [{"role": "user", "content": more.get("prompt", f"question {item}")}],
                    "input": "",
                    "harm": more.get("harm", []),
                    "harmful": bool(more.get("harm")),
                    "gold": more.get("gold"),
                    "explanation": "",
                    "source": {},
                    "content_hash": item,
                }
            )
            responses += [
                {
                    "id": f"{item}/{k}",
                    "item_id": item,
                    "place": k,
                    "text": text,
                    "model": model,
                    "source": {},
                }
                for k, (text, model) in enumerate(zip(texts, models, strict=True))
            ]
        session.execute(insert(Item), rows)
        session.execute(insert(Response), responses)
        people, seqs, made, told = {}, {}, [], []
        for n, vote in enumerate(votes):
            who = vote["who"]
            if who not in people:
                one = Annotator(
                    pseudonym=who,
                    state="active",
                    consent="keep 1",
                    made_at=store.now(),
                    opted_out=[],
                )
                session.add(one)
                session.flush()
                people[who] = one.id
            seqs[who] = seqs.get(who, 0) + 1
            key, at = (
                str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{n}")),
                vote.get("at", store.now()),
            )
            count = len(items[vote["item"]].get("texts", (1, 2)))
            made.append(
                {
                    "id": key,
                    "item_id": vote["item"],
                    "annotator_id": people[who],
                    "batch_id": batch.id,
                    "repeat": vote.get("repeat", 0),
                    "seq": seqs[who],
                    "state": vote.get("state", "submitted"),
                    "lease_until": at,
                    "order": vote.get("order", list(range(count))),
                    "made_at": at,
                    "skip_reason": vote.get("skip_reason", ""),
                }
            )
            if vote.get("rating") is not None or vote.get("ranking"):
                told.append(
                    {
                        "assignment_id": key,
                        "revision": 1,
                        "key": key,
                        "rating": vote.get("rating"),
                        "ranking": vote.get("ranking"),
                        "scales": {},
                        "rationale": vote.get("rationale", ""),
                        "active_ms": round(1000 * vote.get("seconds", 0)),
                        "pasted": vote.get("pasted"),
                        "made_at": at,
                    }
                )
        session.execute(insert(Assignment), made)
        session.execute(insert(Vote), told)
        return batch.id


def put_llmfao(store, shared, **settings):
    """LLMFAO's 8,931 votes; every second one is shown the other way round, which must change
    nothing but the slots.
    """
    folder = shared("data/llmfao/crowd-comparisons.csv").parent
    pairs = {str(row["id"]): row for row in map(json.loads, (folder / "pairs-crowd.jsonl").open())}
    items, votes = {}, []
    for n, row in enumerate(csv.DictReader((folder / "crowd-comparisons.csv").open())):
        swapped, pair = n % 2, pairs[row["id"]]
        items[row["id"]] = {
            "models": (row["left"], row["right"]),
            "texts": (pair["result_x"] or "", pair["result_y"] or ""),
            "prompt": pair["text"],
        }
        rating = {"left": 1, "tie": 0, "right": 4}[row["winner"]]
        votes.append(
            {
                "item": row["id"],
                "who": f"w{row['worker']}",
                "rating": rating,
                "order": [1, 0] if swapped else [0, 1],
                "seconds": 20 + n % 30,
            }
        )
    return put(
        store, votes, items=items, name="llmfao", allow_tie=True, pay_per_item=0.1, **settings
    )


def tell(store, answers):
    """Demographics: pseudonym -> question -> answer."""
    with store.write() as session:
        ids = {a.pseudonym: a.id for a in session.scalars(select(Annotator))}
        for who, told in answers.items():
            for question, answer in told.items():
                session.add(
                    Demographic(
                        annotator_id=ids[who],
                        question=question,
                        answer=answer,
                        keep_until=store.now() + 1e6,
                    )
                )
