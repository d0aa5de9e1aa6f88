"""Documentation in Markdown: every chapter, type, command and event of the schema."""

from .schema import Alternate, Command, Enum, Event, Heading, Struct, Union

QAPI_TOP = """\
# The schema: options, creation options and results

This page is made from `{source}` by `qapi/generate.py`; a unit test keeps the two together. Names,
types and meaning are those of the block layer's users and tools: option strings spell members
`key=value` with dots for nesting, `json:` names and results are JSON.
"""

QMP_TOP = """\
# QMP: commands and events of vise-storage-daemon

This page is made from `{source}` by `qapi/generate.py`; a unit test keeps the two together. Types
of options and results that other programs use as well are in [qapi.md](qapi.md).
"""

# Page -> (how it starts, whether a schema file is on it).
PAGES = {
    "qapi.md": (QAPI_TOP, lambda file: not file.name.startswith("qmp-")),
    "qmp.md": (QMP_TOP, lambda file: file.name.startswith("qmp-")),
}


def flat(text):
    """One table cell."""
    return " ".join(text.split()).replace("|", "\\|")


class DocsGenerator:
    def __init__(self, schema, source, page="qapi.md"):
        self.schema = schema
        self.source = source
        self.page = page

    def text(self):
        top, is_here = PAGES[self.page]
        out = [top.format(source=self.source)]
        for item in self.schema.chapters:
            if not is_here(item.file if isinstance(item, Heading) else item.definition.file):
                continue
            if isinstance(item, Heading):
                out.append(f"\n## {item.title}\n")
                if item.text:
                    out.append(f"\n{item.text}\n")
            else:
                out.append(self.entity(item))
        return "".join(out)

    def entity(self, entity):
        out = [f"\n### {entity.name} ({entity.kind})\n"]
        if entity.doc.text:
            out.append(f"\n{entity.doc.text}\n")
        out.append(self.body(entity))
        for name, text in entity.doc.features.items():
            out.append(f"\nFeature `{name}`: {flat(text)}\n")
        for section in ("Returns", "Errors", "Note"):
            if section in entity.doc.sections:
                out.append(f"\n{section}: {flat(entity.doc.sections[section])}\n")
        if "Example" in entity.doc.sections:
            example = entity.doc.sections["Example"].strip()
            out.append("\n" + "".join(f"    {line}\n" for line in example.splitlines()))
        return "".join(out)

    def body(self, entity):
        if isinstance(entity, Enum):
            rows = [f"| `{value.name}` | {flat(value.doc)} |\n" for value in entity.values]
            return "\n| value | meaning |\n|---|---|\n" + "".join(rows)
        if isinstance(entity, Alternate):
            rows = [f"| {self.link(branch.type)} | {flat(branch.doc)} |\n"
                    for branch in entity.branches]
            return "\n| either | meaning |\n|---|---|\n" + "".join(rows)
        if isinstance(entity, (Command, Event)):
            return self.arguments(entity)
        return self.members(entity)

    def arguments(self, entity):
        out = ""
        if entity.arguments:
            target = self.schema.entities[entity.arguments]
            inline = target.definition is entity.definition
            out = self.members(target) if inline else f"\nArguments: {self.named(target.name)}\n"
        returns = getattr(entity, "returns", None)
        return out + (f"\nReturns {self.link(returns)}.\n" if returns else "")

    def members(self, entity):
        out = []
        if entity.base:
            out.append(f"\nAll members of {self.named(entity.base)}, and:\n")
        if entity.members:
            out.append("\n| member | type | meaning |\n|---|---|---|\n")
            for member in entity.members:
                optional = ", optional" if member.optional else ""
                out.append(f"| `{member.name}` | {self.link(member.type)}{optional} | "
                           f"{flat(member.doc)} |\n")
        if isinstance(entity, Union):
            out.append(f"\n| `{entity.discriminator}` | further members |\n|---|---|\n")
            for value, branch in entity.branches.items():
                out.append(f"| `{value}` | {self.named(branch)} |\n")
        return "".join(out)

    def link(self, type_):
        return f"list of {self.named(type_.name)}" if type_.is_array else self.named(type_.name)

    def named(self, name):
        entity = self.schema.entities.get(name)
        if entity is None:
            return name
        file = entity.definition.file
        page = next(page for page, (_, is_here) in PAGES.items() if is_here(file))
        target = "" if page == self.page else page
        return f"[{name}]({target}#{name.lower()}-{entity.kind})"
