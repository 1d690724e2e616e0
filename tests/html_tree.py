"""A page as elements that tests can walk."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def all(self, tag="", **attributes):
        """Every element below this one with that tag and those attributes (class by word)."""
        for child in self.children:
            if isinstance(child, Element):
                if (not tag or child.tag == tag) and all(
                    value in (child.attributes.get(key.strip("_")) or "").split(" ")
                    for key, value in attributes.items()
                ):
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag="", **attributes):
        """The first such element."""
        return next(self.all(tag, **attributes))

    @property
    def text(self):
        """All words below this element, runs of white space as one blank."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())


class Tree(HTMLParser):
    """The page as elements; an end tag that closes nothing fails."""

    def __init__(self, html):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root], f"not closed: {[each.tag for each in self.open]}"

    def handle_starttag(self, tag, attrs):
        """Go down, unless the tag never holds anything."""
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        """Stay, as for <line/>."""
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        """Go up."""
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        """Keep the text."""
        self.open[-1].children.append(data)


def assert_harmless(tree):
    """No element runs or loads anything, whatever the text in the page was."""
    for element in tree.all():
        if element.tag == "script":
            kind = element.attributes.get("type")
            assert element.attributes in ({}, {"type": "application/json", "id": "data"}), kind
        assert element.tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in {"src", "href", "srcset", "poster", "data", "action"} or "href" in name:
                assert value.startswith(("data:image/png;base64,", "data:audio/flac;base64,", "#"))
            if name == "style":
                own = r"(--[a-z]+:[-\d.e]+;?|left:\d+%)+"
                # Charts: colours, lines and fonts, which load nothing.
                chart = r"((?!url)[a-z-]+: [-\w .,'()%]+(; )?)+"
                assert re.fullmatch(f"{own}|{chart}", value), value
                assert "url(" not in value
