"""What every request passes: clean text, bounded numbers, and a log without anybody's texts."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.datastructures import FormData

LOG = logging.getLogger("laurel_feedback")


class Number(IntegerConvertor):
    """A number in an address, of at most nine digits, so that it fits every database's integers.

    Longer ones are a page that does not exist.
    """

    regex = "[0-9]{1,9}"


register_url_convertor("number", Number())


def clean_text(text: str) -> str:
    """Text that every database and page can hold.

    NUL is removed, and half of a surrogate pair becomes U+FFFD.
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_form(form: FormData) -> FormData:
    """The same form with clean names and values; files as they are."""
    return FormData(
        [
            (clean_text(name), clean_text(value) if isinstance(value, str) else value)
            for name, value in form.multi_items()
        ]
    )


def unclean(body: bytes) -> bool:
    """Does JSON hold a text that `clean_text` would change?

    A program is told so; its text is not changed in silence.
    """
    if b"\\u" not in body and b"\0" not in body:  # most bodies, which are not even read for it
        return False
    try:
        return _unclean(json.loads(body))
    except (ValueError, RecursionError):  # no JSON: whoever reads it says so
        return False


def _unclean(value: Any) -> bool:
    if isinstance(value, str):
        return clean_text(value) != value
    if isinstance(value, list):
        return any(map(_unclean, value))
    return isinstance(value, Mapping) and any(map(_unclean, (*value, *value.values())))


def whole_number(text: str, otherwise: int = 0) -> int:
    """A number of a form or an address's query, from 0 to a thousand million; else `otherwise`."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise


def attachment(name: str) -> str:
    """Content-Disposition of a download.

    Headers hold no letters beyond Latin-1, so the name is percent-encoded.
    """
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def log_broken(error: BaseException, method: str) -> None:
    """What broke and where, for the operator.

    The message of an error can quote what somebody wrote, so it is left out.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("%s request broke: %s\n%s", method, type(error).__qualname__, frames)
