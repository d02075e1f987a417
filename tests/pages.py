"""Reports as tests see them: the parts of an HTML page, by the standard library."""

from html.parser import HTMLParser

VOID = {"img", "input", "link", "meta"}


class Page(HTMLParser):
    """Sections of a page: their text, tables and elements, by the section's id ("" outside of any)."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tables, self.elements = {}, {}, {}
        self._open, self._section = [], ""
        self.feed(text)
        self.close()
        if self._open:
            raise ValueError(f"not closed: {self._open}")

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
        self.elements.setdefault(self._section, []).append((tag, attributes))
        if tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1][-1].append("")

    def handle_endtag(self, tag):
        if self._open.pop() != tag:
            raise ValueError(f"{tag} is closed where it is not open")
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.tables[self._section][-1][-1][-1] += data
        if not {"style", "script"} & set(self._open):
            self.text[self._section] = self.text.get(self._section, "") + data

    def all(self, tag):
        """Attributes of every element of a name."""
        return [attributes for found in self.elements.values() for name, attributes in found if name == tag]
