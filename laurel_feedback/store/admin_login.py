"""How coordinators get in although others try to keep them out.

Browsers that were in before, and links from the command line.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from sqlalchemy import select

from laurel.core.errors import UsageError
from laurel_feedback.store.accounts import ADMIN_HOURS, count_attempt, log_in_as, secret_digest
from laurel_feedback.store.assign import Refused
from laurel_feedback.store.audit import record
from laurel_feedback.store.database import Store
from laurel_feedback.store.tables import Admin

LINK_MINUTES = 15.0
DEVICE_DAYS = 180.0


def sign_for_admin(admin: Admin, text: str) -> str:
    """A signature that only this server can make, and only until the password changes.

    Its key is the password's hash.
    """
    return hmac.new(admin.password.encode(), text.encode(), hashlib.sha256).hexdigest()[:43]


def device_token(store: Store, name: str) -> str:
    """What a browser keeps after a login: it is told from strangers then."""
    with store.read() as session:
        admin = session.scalars(select(Admin).where(Admin.name == name)).one()
    nonce = secrets.token_urlsafe(16)
    return f"{nonce}.{sign_for_admin(admin, f'device {nonce}')}"


def known_device(store: Store, name: str, kept: str) -> str:
    """The browser's own name, where somebody logged in by it under this name before; else ""."""
    nonce, _, seal = kept.partition(".")
    with store.read() as session:
        admin = session.scalar(select(Admin).where(Admin.name == name))
    if admin is None or not kept.isascii():
        return ""
    return nonce if hmac.compare_digest(seal, sign_for_admin(admin, f"device {nonce}")) else ""


def make_login_link(store: Store, name: str) -> str:
    """A token by which a coordinator comes in without a password: once, within LINK_MINUTES.

    For the command line on the server.
    """
    with store.write() as session:
        admin = session.scalar(select(Admin).where(Admin.name == name))
        if admin is None:
            known = (
                ", ".join(session.scalars(select(Admin.name).order_by(Admin.name))) or "none yet"
            )
            raise UsageError(
                f"there is no coordinator `{name}`.", where="name", fix=f"There are: {known}."
            )
        record(session, "operator", "link", f"coordinator {name}", store.now())
        until = f"{store.now() + 60 * LINK_MINUTES:.0f}"
        about = f"{admin.id}.{until}.{secrets.token_urlsafe(12)}"
        return f"{about}.{sign_for_admin(admin, f'link {about}')}"


def redeem_login_link(store: Store, token: str) -> tuple[str, str]:
    """A coordinator's name and a session's cookie for a link's token."""
    about, _, seal = token.rpartition(".")
    number, _, rest = about.partition(".")
    until = rest.partition(".")[0]
    wrong = Refused(
        "this link is unknown, used or expired.", status=403, fix="Make a new one on the server."
    )
    if not (
        number.isdecimal()
        and until.isdecimal()
        and len(number) < 10
        and len(until) < 12
        and seal.isascii()
    ):
        raise wrong
    with store.read() as session:
        admin = session.get(Admin, int(number))
    if admin is None or not hmac.compare_digest(seal, sign_for_admin(admin, f"link {about}")):
        raise wrong
    if not 0 <= int(until) - store.now() <= 60 * LINK_MINUTES + 1:
        raise wrong
    try:
        count_attempt(
            store, f"link {secret_digest(token)[:40]}", 1, 86400.0
        )  # a second time is one too many
    except Refused as error:
        raise wrong from error
    with store.write() as session:
        record(
            session, f"coordinator {admin.name}", "login", f"{admin.name} by a link", store.now()
        )
        return admin.name, log_in_as(session, store.now(), ADMIN_HOURS, admin_id=admin.id)
