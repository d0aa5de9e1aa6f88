"""Reads schema files: JSON-like expressions with single quotes, comments and '##' doc blocks.

The result is a list of Definition: still plain dictionaries, whose keys and strings know their
lines. What they mean is checked in schema.py.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path


class SchemaError(Exception):
    """Bad input; str() is "FILE:LINE: message"."""

    def __init__(self, file, line, message):
        super().__init__(f"{file}:{line}: {message}")


class Text(str):
    """A string of the schema that knows its line."""

    line = 0

    @staticmethod
    def at(line, text):
        result = Text(text)
        result.line = line
        return result


class Table(dict):
    """An object of the schema that knows the line of its opening brace."""

    line = 0


class Items(list):
    """A list of the schema that knows the line of its opening bracket."""

    line = 0


@dataclass
class Doc:
    """One '##' block: the definition's name, text, and what is said of members and features."""

    line: int
    name: str = ""
    text: str = ""
    members: dict = field(default_factory=dict)  # name -> text
    features: dict = field(default_factory=dict)
    sections: dict = field(default_factory=dict)  # "Since", "Returns", "Errors" -> text


@dataclass
class Definition:
    file: Path
    line: int
    data: Table
    doc: Doc | None


@dataclass
class Heading:
    """A doc block that starts with '= ': a chapter of the documentation."""

    title: str
    text: str
    file: Path


TOKEN = re.compile(
    r"(?P<blank>[ \t]+)|(?P<newline>\n)|(?P<comment>#[^\n]*)"
    r"|(?P<punctuation>[{}\[\]:,])|(?P<word>[A-Za-z_]+)|'(?P<string>[^'\n]*)'"
)
NAME = r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9][A-Za-z0-9_.-]*"
SECTIONS = ("Since", "Returns", "Errors", "Example", "Note")


class Parser:
    """Parses one file and those it includes (each once)."""

    def __init__(self, path, seen=None):
        self.path = Path(path)
        self.seen = seen if seen is not None else set()
        self.seen.add(self.path.resolve())
        try:
            self.source = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise SchemaError(self.path, 1, f"cannot read: {error}") from error
        self.position = 0
        self.line = 1
        self.token = None  # (kind, text, line)
        self.definitions = []
        self.headings = []  # (index into definitions, Heading)

    def fail(self, message, line=None):
        raise SchemaError(self.path, line or self.line, message)

    def parse(self):
        """All definitions and headings, in order."""
        items = []
        doc = None
        self.advance()
        while self.token[0] != "end":
            if self.token[0] == "doc":
                if doc is not None:
                    self.fail("documentation without a definition below it", doc.line)
                doc = self.take_doc(items)
                continue
            line = self.token[2]
            if not self.at("{"):
                self.fail(f"expected '{{', found {self.found()}")
            data = self.parse_table()
            if "include" in data:
                self.no_doc(doc, "include")
                items += self.include(data)
            else:
                items.append(Definition(self.path, line, data, doc))
            doc = None
        self.no_doc(doc, "end of file")
        return items

    def no_doc(self, doc, what):
        if doc is not None:
            self.fail(f"documentation without a definition ({what} follows)", doc.line)

    def include(self, data):
        if len(data) != 1 or not isinstance(data["include"], str):
            self.fail("an include has one member, the file's name", data.line)
        target = self.path.parent / data["include"]
        if not target.is_file():
            self.fail(f"included file '{data['include']}' does not exist", data.line)
        if target.resolve() in self.seen:
            return []
        return Parser(target, self.seen).parse()

    # Tokens

    def advance(self):
        while self.position < len(self.source):
            match = TOKEN.match(self.source, self.position)
            if match is None:
                character = self.source[self.position]
                if character == "'":
                    self.fail("string without end on its line")
                self.fail(f"unexpected character {character!r}")
            kind = match.lastgroup
            line_start = self.position == 0 or self.source[self.position - 1] == "\n"
            if kind == "comment" and match.group() == "##" and line_start:
                self.token = ("doc", self.read_doc_lines(), self.line)
                return
            self.position = match.end()
            if kind == "newline":
                self.line += 1
            elif kind not in ("blank", "comment"):
                self.token = (kind, match.group(kind), self.line)
                return
        self.token = ("end", "", self.line)

    def at(self, punctuation):
        return self.token[:2] == ("punctuation", punctuation)

    def expect(self, punctuation):
        if not self.at(punctuation):
            self.fail(f"expected '{punctuation}', found {self.found()}", self.token[2])
        self.advance()

    def found(self):
        kind, text, _ = self.token
        if kind == "end":
            return "end of file"
        if kind == "doc":
            return "a documentation block"
        return f"'{text}'"

    # Expressions

    def parse_table(self):
        table = Table()
        table.line = self.token[2]
        self.expect("{")
        while not self.at("}"):
            if self.token[0] != "string":
                self.fail(f"expected a key in single quotes, found {self.found()}", self.token[2])
            key = Text.at(self.token[2], self.token[1])
            self.advance()
            self.expect(":")
            if key in table:
                self.fail(f"duplicate key '{key}'", key.line)
            table[key] = self.parse_value()
            if not self.at("}"):
                self.expect(",")
                if self.at("}"):
                    self.fail("comma before '}'", self.token[2])
        self.advance()
        return table

    def parse_items(self):
        items = Items()
        items.line = self.token[2]
        self.expect("[")
        while not self.at("]"):
            items.append(self.parse_value())
            if not self.at("]"):
                self.expect(",")
                if self.at("]"):
                    self.fail("comma before ']'", self.token[2])
        self.advance()
        return items

    def parse_value(self):
        kind, text, line = self.token
        if self.at("{"):
            return self.parse_table()
        if self.at("["):
            return self.parse_items()
        if kind == "string":
            self.advance()
            return Text.at(line, text)
        if kind == "word" and text in ("true", "false"):
            self.advance()
            return text == "true"
        self.fail(f"expected a value, found {self.found()}", line)

    # Documentation

    def read_doc_lines(self):
        """The lines between two '##' lines, without '#'; moves behind the second."""
        lines = []
        start = self.line
        self.skip_line()
        while True:
            if self.position >= len(self.source):
                self.fail("documentation block without its closing '##'", start)
            end = self.source.find("\n", self.position)
            end = len(self.source) if end < 0 else end
            line = self.source[self.position : end]
            if line.rstrip() == "##":
                self.skip_line()
                return lines
            if line and not re.match(r"#( |$)", line):
                self.fail("a line of documentation starts with '# '")
            if not line:
                self.fail("blank line inside a documentation block: write '#'")
            lines.append((self.line, line[2:].rstrip()))
            self.skip_line()

    def skip_line(self):
        end = self.source.find("\n", self.position)
        self.position = len(self.source) if end < 0 else end + 1
        self.line += 1

    def take_doc(self, items):
        """The Doc of the current token, or None if it was a heading (appended to `items`)."""
        _, lines, _ = self.token
        self.advance()
        if not lines:
            self.fail("empty documentation block")
        first_line, first = lines[0]
        if first.startswith("= "):
            text = "\n".join(text for _, text in lines[1:]).strip()
            items.append(Heading(first[2:].strip(), text, self.path))
            return None
        match = re.fullmatch(rf"@({NAME}):", first)
        if match is None:
            self.fail("documentation starts with '@NAME:' or '= TITLE'", first_line)
        doc = Doc(first_line, match.group(1))
        self.fill_doc(doc, lines[1:])
        return doc

    def fill_doc(self, doc, lines):
        target, key = None, None  # where continued lines go; None: the body
        in_features = False
        body = []
        for line, text in lines:
            member = re.match(rf"@({NAME}):(?:\s+(.*)|$)", text)
            section = re.match(r"([A-Z][a-z]+):(?:\s+(.*)|$)", text)
            if member:
                target = doc.features if in_features else doc.members
                key = member.group(1)
                if key in target:
                    self.fail(f"'@{key}' is documented twice", line)
                target[key] = member.group(2) or ""
            elif text == "Features:":
                in_features, target = True, None
            elif section and section.group(1) in SECTIONS:
                target, key = doc.sections, section.group(1)
                if key in target:
                    self.fail(f"section '{key}' appears twice", line)
                target[key] = section.group(2) or ""
            elif target is not None:
                target[key] += "\n" + text.strip()
            else:
                body.append(text)
        doc.text = "\n".join(body).strip()
        for target in (doc.members, doc.features, doc.sections):
            for key, text in target.items():
                target[key] = text.strip()
