"""What the definitions mean: types, members, commands and events, all checked.

Conditions ('if') are decided here, against the names given on the command line: what does not
hold is left out, so the rest of the generator never sees it.
"""

import re
from dataclasses import dataclass, field

from .parser import Definition, Doc, Heading, Parser, SchemaError

INTEGERS = {
    "int": "std::int64_t", "int8": "std::int8_t", "int16": "std::int16_t",
    "int32": "std::int32_t", "int64": "std::int64_t", "uint8": "std::uint8_t",
    "uint16": "std::uint16_t", "uint32": "std::uint32_t", "uint64": "std::uint64_t",
    "size": "std::uint64_t",
}
BUILTINS = {"str": "std::string", "number": "double", "bool": "bool", "any": "Value",
            "null": "std::monostate", **INTEGERS}

TYPE_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")
COMMAND_NAME = re.compile(r"(x-)?[a-z][a-z0-9_-]*")
EVENT_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass
class Type:
    """How a member refers to its type: a name, perhaps as an array of it."""

    name: str
    is_array: bool = False

    def __str__(self):
        return f"[{self.name}]" if self.is_array else self.name


@dataclass
class Member:
    name: str
    type: Type
    optional: bool = False
    features: list = field(default_factory=list)
    doc: str = ""
    line: int = 0


@dataclass
class Entity:
    """Common to all definitions."""

    name: str
    definition: Definition
    features: list = field(default_factory=list)

    @property
    def doc(self):
        return self.definition.doc or Doc(self.definition.line)

    def fail(self, message, line=None):
        raise SchemaError(self.definition.file, line or self.definition.line,
                          f"{self.kind} '{self.name}': {message}")


@dataclass
class Enum(Entity):
    kind = "enum"
    values: list = field(default_factory=list)  # of Member without type


@dataclass
class Struct(Entity):
    kind = "struct"
    base: str | None = None
    members: list = field(default_factory=list)


@dataclass
class Union(Entity):
    kind = "union"
    base: str | None = None  # or members of its own
    members: list = field(default_factory=list)
    discriminator: str = ""
    branches: dict = field(default_factory=dict)  # value -> type name
    tag_type: str = ""


@dataclass
class Alternate(Entity):
    kind = "alternate"
    branches: list = field(default_factory=list)  # of Member
    passed_as_value: bool = False


@dataclass
class Command(Entity):
    kind = "command"
    arguments: str | None = None  # a struct or union; inline arguments become a struct
    returns: Type | None = None
    allow_oob: bool = False


@dataclass
class Event(Entity):
    kind = "event"
    arguments: str | None = None


ALLOWED_KEYS = {
    "enum": {"data"}, "struct": {"data", "base"}, "union": {"data", "base", "discriminator"},
    "alternate": {"data"}, "command": {"data", "returns", "boxed", "allow-oob"},
    "event": {"data", "boxed"},
}


class Schema:
    """All entities by name, in order of definition; raises SchemaError for the first mistake."""

    def __init__(self, path, defines=()):
        self.defines = set(defines)
        self.entities = {}
        self.chapters = []  # Heading or Entity, in order, for the documentation
        self.passed_as_value = {}  # alternate -> line of the pragma
        self.pragma_file = path
        for item in Parser(path).parse():
            if isinstance(item, Heading):
                self.chapters.append(item)
            elif "pragma" in item.data:
                self.add_pragma(item)
            else:
                self.add(item)
        for entity in list(self.entities.values()):
            self.check(entity)
        self.check_pragmas()

    def of_kind(self, *kinds):
        return [entity for entity in self.entities.values() if isinstance(entity, kinds)]

    # Reading definitions

    def add_pragma(self, item):
        pragma = item.data["pragma"]
        if not isinstance(pragma, dict) or set(pragma) != {"passed-as-value"}:
            raise SchemaError(item.file, item.line, "the only pragma is 'passed-as-value'")
        for name in pragma["passed-as-value"]:
            self.passed_as_value[name] = name.line
        self.pragma_file = item.file

    def check_pragmas(self):
        for name, line in self.passed_as_value.items():
            if not isinstance(self.entities.get(name), Alternate):
                raise SchemaError(self.pragma_file, line,
                                  f"pragma 'passed-as-value': '{name}' is no alternate")

    def add(self, item):
        def fail(message, line=None):
            raise SchemaError(item.file, line or item.line, message)

        kinds = [key for key in item.data if key in ALLOWED_KEYS]
        if len(kinds) != 1:
            fail("a definition has exactly one of " + ", ".join(ALLOWED_KEYS))
        kind = kinds[0]
        name = item.data[kind]
        if not isinstance(name, str):
            fail(f"the name of the {kind} must be a string")
        for key in item.data:
            if key not in ALLOWED_KEYS[kind] | {kind, "if", "features"}:
                fail(f"{kind} '{name}': unknown key '{key}'", key.line)
        pattern = {"command": COMMAND_NAME, "event": EVENT_NAME}.get(kind, TYPE_NAME)
        if not pattern.fullmatch(name):
            fail(f"{kind} '{name}': the name must look like {pattern.pattern}", name.line)
        if name in self.entities:
            other = self.entities[name].definition
            fail(f"'{name}' is already defined at {other.file}:{other.line}", name.line)
        if item.doc is None:
            fail(f"{kind} '{name}' has no documentation")
        if item.doc.name != name:
            fail(f"documentation is for '{item.doc.name}', the definition is '{name}'",
                 item.doc.line)
        if not self.holds(item.data.get("if"), fail):
            return
        maker = getattr(self, f"make_{kind}")
        entity = maker(name, item)
        entity.features = self.features(entity, item.data)
        self.entities[name] = entity
        self.chapters.append(entity)

    def holds(self, condition, fail):
        if condition is None:
            return True
        if isinstance(condition, str):
            return condition in self.defines
        if isinstance(condition, dict) and len(condition) == 1:
            operator, operand = next(iter(condition.items()))
            if operator == "not":
                return not self.holds(operand, fail)
            if operator in ("all", "any") and isinstance(operand, list) and operand:
                results = [self.holds(part, fail) for part in operand]
                return all(results) if operator == "all" else any(results)
        fail("'if' takes a name, or one of 'all', 'any', 'not'")

    def features(self, entity, data):
        features = data.get("features", [])
        if not isinstance(features, list):
            entity.fail("'features' must be a list of strings")
        for feature in features:
            if not isinstance(feature, str):
                entity.fail("'features' must be a list of strings")
            if feature not in entity.doc.features:
                entity.fail(f"feature '{feature}' is not documented")
        return list(features)

    def make_enum(self, name, item):
        enum = Enum(name, item)
        data = item.data.get("data")
        if not isinstance(data, list) or not data:
            enum.fail("'data' must be a list with at least one value")
        for value in data:
            table = value if isinstance(value, dict) else {"name": value}
            text = table.get("name")
            if not isinstance(text, str) or set(table) - {"name", "if", "features"}:
                enum.fail("a value is a string, or an object of 'name', 'if', 'features'")
            if not MEMBER_NAME.fullmatch(text):
                enum.fail(f"bad value '{text}'", text.line)
            if any(text == other.name for other in enum.values):
                enum.fail(f"value '{text}' appears twice", text.line)
            if self.holds(table.get("if"), enum.fail):
                enum.values.append(Member(text, Type("str"), line=text.line,
                                          features=list(table.get("features", []))))
        self.attach_docs(enum, enum.values)
        return enum

    def make_struct(self, name, item):
        struct = Struct(name, item)
        struct.base = item.data.get("base")
        if struct.base is not None and not isinstance(struct.base, str):
            struct.fail("'base' must be the name of a struct")
        struct.members = self.members(struct, item.data.get("data"))
        self.attach_docs(struct, struct.members)
        return struct

    def make_union(self, name, item):
        union = Union(name, item)
        base = item.data.get("base")
        if isinstance(base, str):
            union.base = base
        elif isinstance(base, dict):
            union.members = self.members(union, base)
        else:
            union.fail("'base' must be a struct or an object of members")
        union.discriminator = item.data.get("discriminator")
        if not isinstance(union.discriminator, str):
            union.fail("'discriminator' must name a member of the base")
        for branch in self.members(union, item.data.get("data")):
            if branch.optional or branch.type.is_array:
                union.fail(f"branch '{branch.name}' must be a struct", branch.line)
            union.branches[branch.name] = branch
        self.attach_docs(union, union.members)
        return union

    def make_alternate(self, name, item):
        alternate = Alternate(name, item)
        alternate.branches = self.members(alternate, item.data.get("data"))
        alternate.passed_as_value = name in self.passed_as_value
        if len(alternate.branches) < 2:
            alternate.fail("needs at least two branches")
        self.attach_docs(alternate, alternate.branches)
        return alternate

    def make_command(self, name, item):
        command = Command(name, item)
        command.arguments = self.arguments(command, item.data)
        returns = item.data.get("returns")
        if returns is not None:
            command.returns = self.type_of(command, returns, item.line)
        command.allow_oob = item.data.get("allow-oob", False) is True
        return command

    def make_event(self, name, item):
        event = Event(name, item)
        event.arguments = self.arguments(event, item.data)
        return event

    def arguments(self, entity, data):
        """The name of the type of the arguments; inline ones become a struct of their own."""
        arguments = data.get("data")
        if arguments is None or isinstance(arguments, str):
            return arguments
        words = re.split(r"[-_]", entity.name.lower())
        name = "".join(word.capitalize() for word in words) + "Arguments"
        struct = Struct(name, entity.definition)
        struct.members = self.members(entity, arguments)
        self.attach_docs(entity, struct.members)
        if name in self.entities:
            entity.fail(f"its arguments would be called '{name}', which is taken")
        self.entities[name] = struct
        return name

    def members(self, entity, data):
        if not isinstance(data, dict):
            entity.fail("'data' must be an object")
        result = []
        for key, value in data.items():
            optional = key.startswith("*")
            name = key[1:] if optional else str(key)
            if not MEMBER_NAME.fullmatch(name):
                entity.fail(f"bad member name '{key}'", key.line)
            features = []
            if isinstance(value, dict):
                if set(value) - {"type", "if", "features"} or "type" not in value:
                    entity.fail(f"member '{name}' takes 'type', 'if', 'features'", key.line)
                if not self.holds(value.get("if"), entity.fail):
                    continue
                features = list(value.get("features", []))
                value = value["type"]
            type_ = self.type_of(entity, value, key.line)
            result.append(Member(name, type_, optional, features, line=key.line))
        return result

    def type_of(self, entity, value, line):
        if isinstance(value, str):
            return Type(str(value))
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return Type(str(value[0]), is_array=True)
        entity.fail("a type is a name or a list of one name", line)

    def attach_docs(self, entity, members):
        documented = entity.doc.members
        for member in members:
            if member.name not in documented:
                entity.fail(f"'{member.name}' is not documented", member.line)
            member.doc = documented[member.name]
        names = {member.name for member in members}
        conditional = self.conditional_names(entity)
        for name in documented:
            if name not in names and name not in conditional:
                entity.fail(f"documented '@{name}' does not exist", entity.doc.line)

    @staticmethod
    def conditional_names(entity):
        """Names that exist under some condition: documenting them is fine when it fails."""
        data = entity.definition.data.get("data")
        if isinstance(data, list):
            return {value["name"] for value in data if isinstance(value, dict)}
        return {key.lstrip("*") for key, value in data.items() if isinstance(value, dict)}

    # Checking what needs all definitions

    def check(self, entity):
        getattr(self, f"check_{entity.kind}")(entity)

    def check_enum(self, enum):
        pass

    def check_type(self, entity, type_, line=None):
        if type_.name in BUILTINS:
            return
        target = self.entities.get(type_.name)
        if target is None or isinstance(target, (Command, Event)):
            entity.fail(f"unknown type '{type_.name}'", line)

    def check_members(self, entity, members):
        inherited = {member.name for member in self.base_members(entity)}
        for member in members:
            self.check_type(entity, member.type, member.line)
            if member.type.is_array and member.type.name == "size":
                entity.fail("lists of 'size' are not supported", member.line)
            target = self.entities.get(member.type.name)
            if member.type.is_array and getattr(target, "passed_as_value", False):
                entity.fail(f"lists of '{member.type.name}' are not supported", member.line)
            if member.name in inherited:
                entity.fail(f"member '{member.name}' is also in the base", member.line)

    def base_members(self, entity, depth=0):
        """Members of the bases, outermost first."""
        base_name = getattr(entity, "base", None)
        if base_name is None:
            return []
        base = self.entities.get(base_name)
        if not isinstance(base, Struct):
            entity.fail(f"base '{base_name}' is no struct")
        if depth > 16:
            entity.fail("its bases go in a circle")
        return self.base_members(base, depth + 1) + base.members

    def all_members(self, entity):
        """All members but those of union branches."""
        return self.base_members(entity) + entity.members

    def check_struct(self, struct):
        self.check_members(struct, struct.members)

    def check_union(self, union):
        self.check_members(union, union.members)
        members = self.all_members(union)
        tag = next((m for m in members if m.name == union.discriminator), None)
        if tag is None:
            union.fail(f"discriminator '{union.discriminator}' is no member of the base")
        enum = self.entities.get(tag.type.name)
        if not isinstance(enum, Enum) or tag.type.is_array or tag.optional:
            union.fail(f"discriminator '{union.discriminator}' must be a mandatory enum member")
        union.tag_type = enum.name
        values = {value.name for value in enum.values}
        conditional = self.conditional_names(enum)
        for name, branch in list(union.branches.items()):
            if name not in values:
                if name in conditional:
                    del union.branches[name]
                    continue
                union.fail(f"branch '{name}' is no value of {enum.name}", branch.line)
            target = self.entities.get(branch.type.name)
            if not isinstance(target, (Struct, Union)):
                union.fail(f"branch '{name}': '{branch.type}' is no struct", branch.line)
            for member in self.all_members(target):
                if any(member.name == other.name for other in members):
                    union.fail(f"branch '{name}': member '{member.name}' is also in the base",
                               branch.line)
        union.branches = {name: branch.type.name for name, branch in union.branches.items()}

    def json_type(self, type_):
        """Which JSON type a value of it has; alternates are told apart by it."""
        if type_.is_array:
            return "array"
        if type_.name in INTEGERS:
            return "integer"
        if type_.name in BUILTINS:
            return {"str": "string", "number": "integer", "bool": "boolean",
                    "null": "null", "any": "any"}[type_.name]
        target = self.entities[type_.name]
        return "string" if isinstance(target, Enum) else "object"

    def check_alternate(self, alternate):
        taken = {}
        for branch in alternate.branches:
            self.check_type(alternate, branch.type, branch.line)
            if branch.optional:
                alternate.fail(f"branch '{branch.name}' cannot be optional", branch.line)
            if isinstance(self.entities.get(branch.type.name), Alternate):
                alternate.fail(f"branch '{branch.name}' is an alternate itself", branch.line)
            json_type = self.json_type(branch.type)
            if json_type == "any" or json_type in taken:
                alternate.fail(f"branches '{taken.get(json_type, branch.name)}' and "
                               f"'{branch.name}' cannot be told apart", branch.line)
            taken[json_type] = branch.name

    def check_arguments(self, entity):
        if entity.arguments is None:
            return
        target = self.entities.get(entity.arguments)
        if not isinstance(target, (Struct, Union)):
            entity.fail(f"'data': '{entity.arguments}' is no struct")

    def check_command(self, command):
        self.check_arguments(command)
        if command.returns is not None:
            self.check_type(command, command.returns)

    def check_event(self, event):
        self.check_arguments(event)
