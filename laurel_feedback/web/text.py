"""Texts that others wrote, as HTML that can do nothing: plain, or Markdown through an allow-list.

Nothing hidden, nothing endless.
"""

from __future__ import annotations

import re

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

CAP = 8000
"""Characters shown at first; the rest opens with "show all"."""
MOST = 100_000
"""Characters that a page holds of one text; of a longer one it says how much is left out."""
ODD = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Characters that are invisible or that change the order of others.

Bidirectional controls, zero widths, fillers, controls, tags.
"""
JOINERS = "\u200c\u200d"
TAGS = {
    "p",
    "br",
    "strong",
    "em",
    "s",
    "del",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "a"}
MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "linkify": False})
    .enable(["table", "strikethrough"])
    .disable("image")
)


def name_odd_characters(text: str) -> str:
    """The text with every odd character named instead: U+202E becomes [U+202E].

    Joiners inside emoji and non-Latin words stay.
    """

    def name(match: re.Match[str]) -> str:
        character, start, end = match[0], match.start(), match.end()
        if (
            character in JOINERS
            and start > 0
            and end < len(text)
            and ord(text[start - 1]) > 0x2FF
            and ord(text[end]) > 0x2FF
        ):
            return character
        return f"[U+{ord(character):04X}]"

    return ODD.sub(name, text.replace("\r\n", "\n"))


def escape_plain(text: str) -> Markup:
    """Escaped; line breaks and spaces are kept by the style."""
    return Markup('<div class="text plain" dir="auto">{}</div>').format(
        escape(name_odd_characters(text))
    )


def render_markdown(text: str) -> Markup:
    """Markdown as HTML: no HTML of its own, no images, links only to the web and only by a click.

    What is left passes an allow-list.
    """
    html = nh3.clean(
        MARKDOWN.render(text),
        tags=TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return Markup('<div class="text" dir="auto">{}</div>').format(Markup(name_odd_characters(html)))


def render_text(text: str, markdown: bool = False, cap: int = CAP) -> Markup:
    """A text for a page.

    One over `cap` characters is cut there, and the rest stands folded behind "Show all", up to
    `MOST`.
    """
    if not text.strip():
        return Markup('<p class="soft">(This text is empty.)</p>')
    if len(text) > MOST:
        message = Markup(
            '<p class="soft">This text is too long for a page: its last {} of {} characters are'
            " left out.</p>"
        )
        return render_text(text[:MOST], markdown, cap) + message.format(
            f"{len(text) - MOST:,}", f"{len(text):,}"
        )
    render = render_markdown if markdown else escape_plain
    if len(text) <= cap * 1.1:
        return render(text)
    cut = max(text.rfind("\n\n", cap // 2, cap), text.rfind("\n", cap // 2, cap), cap // 2)
    cut = cut if cut > cap // 2 else cap
    head, rest = text[:cut], text[cut:].lstrip("\n")
    if render is render_markdown and len(re.findall(r"^\s*```", head, re.MULTILINE)) % 2:
        head, rest = head + "\n```", "```\n" + rest
    more = Markup(
        '<details class="more"><summary>Show all: {} more characters</summary>{}</details>'
    )
    return render(head) + more.format(f"{len(text) - cut:,}", render(rest))
