"""Pieces of a page: elements whose text can't become markup, tables, pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from PIL import Image

from deeplabzoo.parity.words import printable

_NUMBER = re.compile(r"(\d[\d.]*(?:e-\d+| %))")


def tag(name: str, /, *children: Element | str, **attributes: object) -> Element:
    """An element; text is text whatever it holds, because the serialiser escapes it.

    Args:
        name: of the element.
        children: elements and text, in order.
        attributes: `class_` and the like lose the underscore at the end, those within become hyphens; False and None
            leave an attribute out, True gives one without a value.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None and value is not False:
            element.set(key.rstrip("_").replace("_", "-"), "" if value is True else printable(value))
    add(element, *children)
    return element


def add(element: Element, *children: Element | str) -> None:
    """Append elements and text."""
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + printable(child)
        else:
            element.text = (element.text or "") + printable(child)


def code(name: str) -> Element:
    """A name that may break between its parts where a line is short."""
    element = tag("code")
    for place, part in enumerate(name.split(".")):
        if place:
            add(element, ".", tag("wbr"))
        add(element, part)
    return element


def prose(text: str) -> list[Element | str]:
    """Text whose numbers do not break at their signs where a line ends."""
    parts = _NUMBER.split(text)
    return [tag("span", part, class_="together") if place % 2 else part for place, part in enumerate(parts)]


def cell(*children: Element | str, head: str | None = None, **attributes: object) -> Element:
    """A cell of a table; `head` is the scope of a heading."""
    return tag("th" if head else "td", *children, scope=head, **attributes)


def table(
    caption: str, heads: Sequence[str | Element], bodies: Iterable[Sequence[Element]], class_: str = ""
) -> Element:
    """A table in a box that scrolls by itself where the page is too narrow for it.

    Args:
        caption: what it shows.
        heads: of the columns; an element is taken as it is.
        bodies: groups of rows.
        class_: of the table.
    """
    row = tag("tr", *(head if isinstance(head, Element) else cell(head, head="col") for head in heads))
    parts = [tag("caption", tag("span", caption)), tag("thead", row), *(tag("tbody", *body) for body in bodies)]
    # A box that scrolls must be reachable by keyboard, and what is reachable must have a name.
    return tag(
        "div",
        tag("table", *parts, class_=class_ or None),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def details(summary: Element | str, *children: Element, open_: bool = False, class_: str | None = None) -> Element:
    """Content that unfolds."""
    return tag("details", tag("summary", summary), *children, open=open_, class_=class_)


def image(pixels: Image.Image, alt: str, class_: str) -> Element:
    """A picture within the page, as a PNG."""
    file = io.BytesIO()
    pixels.save(file, format="PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return tag("img", src=source, alt=alt, width=pixels.width, height=pixels.height, class_=class_)
