"""What the users of an application prefer: questions it asks, clicks it sends.

The same tables as annotators' votes, kind `product`.

Each application has a key, of which the digest alone is stored, and a batch of its own. Its users
are annotators under a pseudonym, an HMAC of the id that the application gives them: the id itself
is stored nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from laurel.core.errors import UsageError
from laurel_feedback.exchange.load import canonical_digest, messages_of
from laurel_feedback.store.accounts import OF_APPLICATION, secret_digest
from laurel_feedback.store.assign import Answer, Refused, reserve_answer, vote_columns
from laurel_feedback.store.audit import record, record_vote
from laurel_feedback.store.batch_settings import BatchSettings
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Annotator, ApiKey, Assignment, Batch, Item, Response, Vote

SETTINGS = BatchSettings(target_votes=1, allow_tie=True)
PAGE_SECONDS = 24 * 3600.0
"""How long the link of an embedded page holds."""


def create_api_key(store: Store, name: str, *, actor: str = "operator") -> str:
    """A new key for an application; it is shown only now.

    Further keys of the same name have the same users and the same batch.
    """
    if not name.strip() or len(name) > 100:
        raise UsageError(
            "a key has a name of 1 to 100 characters.", where="key", fix="Name the application."
        )
    token = f"laurel-{secrets.token_urlsafe(32)}"
    with store.write() as session:
        session.add(ApiKey(digest=secret_digest(token), name=name.strip(), made_at=store.now()))
        record(session, actor, "key", f"application {name.strip()}", store.now())
    return token


def revoke_api_keys(store: Store, name: str, *, actor: str = "operator") -> int:
    """End every key of this name; how many there were."""
    with store.write() as session:
        keys = session.scalars(select(ApiKey).where(ApiKey.name == name, ~ApiKey.revoked)).all()
        for key in keys:
            key.revoked = True
        record(session, actor, "revoke", f"application {name}", store.now(), keys=len(keys))
        return len(keys)


def api_key_of_token(store: Store, token: str) -> ApiKey:
    """The key that a token is. Unknown and revoked ones are refused alike."""
    with store.read() as session:
        key = session.scalar(
            select(ApiKey).where(ApiKey.digest == secret_digest(token), ~ApiKey.revoked)
        )
    if key is None:
        raise Refused(
            "this key is unknown or revoked.",
            status=401,
            where="Authorization",
            fix="Send `Authorization: Bearer KEY`.",
        )
    return key


def ask_comparison(
    store: Store, key: ApiKey, prompt: Any, responses: Sequence[tuple[str, str]]
) -> tuple[str, list[str]]:
    """Make a comparison of two (text, model): its id, and the texts in the order to show them in.

    The order is drawn here and kept.
    """
    turns = messages_of(prompt, "user", "body", "prompt")
    if len(responses) != 2:
        raise Refused(
            f"a comparison has two responses, not {len(responses)}.", status=422, where="responses"
        )
    with store.write() as session:
        order = secrets.SystemRandom().sample(range(2), 2)
        item = _product_item_id(
            session, store, key, str(uuid.uuid4()), turns, responses, {"order": order}
        )
        return item, [responses[place][0] for place in order]


def record_choice(
    store: Store, key: ApiKey, comparison: str, user: str, choice: int | str, idempotency: str = ""
) -> dict[str, Any]:
    """Someone prefers the response in slot 0 or 1, or neither ("tie").

    The same idempotency key again is the same answer.

    A comparison is one user's: another one is refused. The same user with another key changes their
    mind.
    """
    with store.read() as session:
        pseudonym = pseudonym_of(session, key, user)
    return record_choice_as(store, key, comparison, pseudonym, choice, idempotency)


def record_choice_as(
    store: Store,
    key: ApiKey,
    comparison: str,
    pseudonym: str,
    choice: int | str,
    idempotency: str = "",
) -> dict[str, Any]:
    """`record_choice` for a user whose pseudonym is known: of a page's link."""
    if type(choice) not in (int, str) or choice not in (0, 1, "tie"):
        raise Refused("a choice is 0, 1 or tie.", status=422, where="choice")
    rating = {0: 1, 1: 4, "tie": 0}[choice]
    with store.write() as session:
        item = _own_comparison(session, key, comparison)
        return _store_vote(
            session,
            store,
            key,
            item,
            _application_user(session, store, pseudonym),
            Answer(rating=rating),
            idempotency,
        )


def record_thumb(
    store: Store,
    key: ApiKey,
    prompt: Any,
    response: tuple[str, str],
    up: bool,
    user: str,
    idempotency: str = "",
) -> dict[str, Any]:
    """Someone likes an answer or does not.

    The same person about the same answer again changes their mind.
    """
    turns = messages_of(prompt, "user", "body", "prompt")
    with store.write() as session:
        person = _application_user(session, store, pseudonym_of(session, key, user))
        identity = canonical_digest("thumb", key.name, person.pseudonym, turns, response[0])[:32]
        if session.get(Item, identity) is None:
            _product_item_id(session, store, key, identity, turns, [response], {"order": [0]})
        item = session.get_one(Item, identity)
        return _store_vote(
            session, store, key, item, person, Answer(rating=1 if up else 4), idempotency
        )


def pseudonym_of(session: Session, key: ApiKey, user: str) -> str:
    """An application's user as this database knows them.

    The secret is the digest of the application's first key.
    """
    secret = (
        session.scalar(
            select(ApiKey.digest).where(ApiKey.name == key.name).order_by(ApiKey.id).limit(1)
        )
        or key.digest
    )
    return "user-" + hmac.new(secret.encode(), user.encode(), hashlib.sha256).hexdigest()[:20]


def sign_link(key: ApiKey, comparison: str, user: str, until: int) -> str:
    """The signature of a page's link: this comparison, this user, until then, and one answer."""
    return hmac.new(
        key.digest.encode(), f"{comparison}|{user}|{until}".encode(), hashlib.sha256
    ).hexdigest()


def key_that_signed(store: Store, comparison: str, user: str, until: int, signature: str) -> ApiKey:
    """The key that signed a page's link.

    A link that is wrong, too old or of a revoked key is refused.
    """
    with store.read() as session:
        for key in session.scalars(select(ApiKey).where(~ApiKey.revoked)):
            if hmac.compare_digest(
                sign_link(key, comparison, user, until).encode(), signature.encode()
            ):
                if until < store.now():
                    break
                return key
    raise Refused(
        "this link is not valid (any more).", status=403, fix="Reload the page that shows it."
    )


def shown_comparison(
    store: Store, key: ApiKey, comparison: str, pseudonym: str, idempotency: str
) -> tuple[list[dict[str, str]], list[str], bool]:
    """(prompt, texts slot by slot, answered already) of a comparison.

    The last says whether this user has answered with this idempotency key.
    """
    with store.read() as session:
        item = _own_comparison(session, key, comparison)
        texts = [item.responses[place].text for place in item.source["order"]]
        answered = (
            session.scalar(
                select(Vote.id).where(Vote.key == _vote_key(key, item.id, pseudonym, idempotency))
            )
            is not None
        )
        return item.prompt, texts, answered


def _own_comparison(session: Session, key: ApiKey, comparison: str) -> Item:
    item = session.get(Item, comparison)
    if (
        item is None
        or item.kind != "product"
        or item.source.get("application") != key.name
        or len(item.source["order"]) != 2
    ):
        raise Refused("there is no such comparison of yours.", status=404)
    return item


def _product_item_id(
    session: Session,
    store: Store,
    key: ApiKey,
    identity: str,
    turns: list[dict[str, str]],
    responses: Sequence[tuple[str, str]],
    source: dict[str, Any],
) -> str:
    """A product item in the application's batch; its id."""
    for text, _ in responses:
        messages_of(text, "assistant", "body", "responses")
    batch = _application_batch(session, store, key)
    place = session.scalar(select(func.max(Item.place)).where(Item.batch_id == batch.id))
    candidates = [canonical_digest(turns, "", text, []) for text, _ in responses]
    item = Item(
        id=identity,
        batch_id=batch.id,
        place=0 if place is None else place + 1,
        kind="product",
        prompt=turns,
        target=1,
        live=0,
        content_hash=canonical_digest("product", turns, "", sorted(candidates)),
        source={"application": key.name, **source},
    )
    session.add(item)
    session.flush()
    session.add_all(
        Response(
            id=canonical_digest(identity, at)[:32],
            item_id=identity,
            place=at,
            text=text,
            model=model,
            source={"candidate": candidates[at]},
        )
        for at, (text, model) in enumerate(responses)
    )
    session.flush()
    return identity


def _application_batch(session: Session, store: Store, key: ApiKey) -> Batch:
    """The application's batch, which is made where there is none."""
    name = f"product {key.name}"
    batch = session.scalar(select(Batch).where(Batch.name == name))
    if batch is None:
        batch = Batch(name=name, state="open", settings=SETTINGS.model_dump(), made_at=store.now())
        session.add(batch)
        session.flush()
    return batch


def _application_user(session: Session, store: Store, name: str) -> Annotator:
    """The application's user of this pseudonym, made if need be. Someone who withdrew stays so."""
    found = session.scalar(select(Annotator).where(Annotator.pseudonym == name))
    if found is None:
        found = Annotator(
            pseudonym=name, state="active", consent=OF_APPLICATION, made_at=store.now()
        )
        session.add(found)
        session.flush()
    if found.state != "active":
        raise Refused("this user has withdrawn; nothing was stored.", status=403, where="user")
    return found


def _vote_key(key: ApiKey, item: str, pseudonym: str, idempotency: str) -> str:
    """An idempotency key as votes store it: with its user, so that two may use the same one."""
    return f"api-{canonical_digest(key.name, item, pseudonym, idempotency)[:40]}"


def _store_vote(
    session: Session,
    store: Store,
    key: ApiKey,
    item: Item,
    person: Annotator,
    answer: Answer,
    idempotency: str,
) -> dict[str, Any]:
    """Store the answer, or find it stored under this idempotency key."""
    name = _vote_key(key, item.id, person.pseudonym, idempotency)
    taken = vote_columns(answer, item.source["order"], SETTINGS)
    known = session.scalar(select(Vote).where(Vote.key == name))
    if known is not None:
        if known.rating != taken["rating"]:
            raise Refused(
                "another answer was stored before, and holds.",
                fix="To change it, send a new Idempotency-Key.",
            )
        return {"stored": True, "revision": known.revision, "again": True}
    assignment = _user_assignment(session, store, item, person)
    votes = select(func.max(Vote.revision)).where(Vote.assignment_id == assignment.id)
    revision = 1 + (session.scalar(votes) or 0)
    vote = Vote(
        assignment_id=assignment.id, revision=revision, key=name, made_at=store.now(), **taken
    )
    session.add(vote)
    session.flush()
    record_vote(session, vote, store.now())
    return {"stored": True, "revision": revision, "again": False}


def _in_batch(person: Annotator, item: Item) -> tuple[Any, ...]:
    return Assignment.annotator_id == person.id, Assignment.batch_id == item.batch_id


def _user_assignment(session: Session, store: Store, item: Item, person: Annotator) -> Assignment:
    """The user's assignment of a comparison; Refused where another user has answered it."""
    own = select(Assignment).where(
        Assignment.item_id == item.id, Assignment.annotator_id == person.id, Assignment.repeat == 0
    )
    assignment = session.scalar(own)
    if assignment is not None:
        return assignment
    if not reserve_answer(session, item.id):
        raise Refused(
            "another user has answered this comparison.", fix="Make a comparison for each user."
        )
    last = session.scalar(select(func.max(Assignment.seq)).where(*_in_batch(person, item)))
    assignment = Assignment(
        id=str(uuid.uuid4()),
        item_id=item.id,
        annotator_id=person.id,
        batch_id=item.batch_id,
        repeat=0,
        seq=(last or 0) + 1,
        state="submitted",
        lease_until=store.now(),
        order=item.source["order"],
        made_at=store.now(),
    )
    session.add(assignment)
    session.flush()
    return assignment
