#!/usr/bin/env python3
"""The schema's parser and checks: what is accepted, and where mistakes are reported."""

import json
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "qapi"))

from gen.cpp import CppGenerator  # noqa: E402
from gen.docs import DocsGenerator  # noqa: E402
from gen.introspect import Introspection  # noqa: E402
from gen.parser import SchemaError  # noqa: E402
from gen.schema import Schema  # noqa: E402

# Each definition with the least documentation that is enough.
ENUM = "##\n# @E:\n#\n# @a: first\n#\n# @b: second\n##\n{ 'enum': 'E', 'data': [ 'a', 'b' ] }\n"
STRUCT = "##\n# @S:\n#\n# @x: a number\n##\n{ 'struct': 'S', 'data': { 'x': 'int' } }\n"


def doc(name, *members):
    lines = [f"# @{name}:"] + [f"# @{member}: text" for member in members]
    return "##\n" + "\n".join(lines) + "\n##\n"


class SchemaTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, text, name="schema.json"):
        path = Path(self.folder.name) / name
        path.write_text(text, encoding="utf-8")
        return path

    def schema(self, text, defines=()):
        return Schema(self.write(text), defines)

    def refused(self, text, line, message):
        with self.assertRaises(SchemaError) as caught:
            self.schema(text)
        self.assertIn(f"schema.json:{line}: ", str(caught.exception))
        self.assertIn(message, str(caught.exception))


class Parsing(SchemaTest):
    def test_mistakes_of_form_are_reported_with_their_line(self):
        for text, line, message in [
            ("{ 'enum': 'E'", 1, "expected ',', found end of file"),
            ("\n{ 'enum' 'E' }", 2, "expected ':', found 'E'"),
            ("{ enum: 'E' }", 1, "expected a key in single quotes, found 'enum'"),
            ("{ 'a': 'b',\n 'a': 'c' }", 2, "duplicate key 'a'"),
            ("{ 'a': 'b', }", 1, "comma before '}'"),
            ("{ 'a': [ 'b', ] }", 1, "comma before ']'"),
            ("{ 'a': \"b\" }", 1, "unexpected character '\"'"),
            ("{ 'a': 'b }\n", 1, "string without end on its line"),
            ("{ 'a': maybe }", 1, "expected a value, found 'maybe'"),
            ("'a'", 1, "expected '{', found 'a'"),
            ("{ 'include': 'missing.json' }", 1, "'missing.json' does not exist"),
            ("\n##\n# @S:\n", 2, "without its closing '##'"),
            ("##\n# @S:\nx\n##\n", 3, "starts with '# '"),
            ("##\n# @S:\n\n##\n", 3, "blank line inside"),
            ("##\n##\n", 3, "empty documentation block"),
            ("##\n# Text\n##\n{}", 2, "starts with '@NAME:'"),
            ("##\n# @S:\n##\n", 2, "without a definition"),
            ("##\n# @S:\n##\n" + STRUCT, 2, "without a definition below"),
            ("##\n# @S:\n# @x: a\n# @x: b\n##\n", 4, "documented twice"),
        ]:
            with self.subTest(text):
                self.refused(text, line, message)

    def test_mistakes_of_meaning_are_reported_with_their_line(self):
        for text, line, message in [
            ("{ 'thing': 'x' }", 1, "exactly one of enum, struct"),
            ("{ 'struct': 'S', 'data': {} }", 1, "has no documentation"),
            (doc("T") + "{ 'struct': 'S', 'data': {} }", 2, "documentation is for 'T'"),
            (doc("S") + "{ 'struct': 'S', 'data': {}, 'foo': 'x' }", 4, "unknown key 'foo'"),
            (doc("s") + "{ 'struct': 's', 'data': {} }", 4, "must look like"),
            (STRUCT + STRUCT, 12, "already defined at"),
            (doc("S") + "{ 'struct': 'S', 'data': { 'x': 'int' } }", 4, "'x' is not documented"),
            (doc("S", "x") + "{ 'struct': 'S', 'data': {} }", 2, "'@x' does not exist"),
            (doc("S", "x") + "{ 'struct': 'S',\n 'data': { 'x': 'Nope' } }", 6, "unknown type"),
            (doc("S", "X") + "{ 'struct': 'S', 'data': { 'X': 'int' } }", 5, "bad member name"),
            (doc("S", "x") + "{ 'struct': 'S', 'data': { 'x': [ 'size' ] } }", 5, "lists of 'size'"),
            (doc("S") + "{ 'struct': 'S', 'base': 'int', 'data': {} }", 4, "is no struct"),
            (doc("S") + "{ 'struct': 'S', 'base': 'S', 'data': {} }", 4, "go in a circle"),
            (STRUCT + doc("T", "x") + "{ 'struct': 'T', 'base': 'S', 'data': { 'x': 'int' } }", 11,
             "also in the base"),
            (doc("E") + "{ 'enum': 'E', 'data': [] }", 4, "at least one value"),
            (doc("E", "a") + "{ 'enum': 'E', 'data': [ 'a',\n 'a' ] }", 6, "appears twice"),
            (ENUM + doc("U") + "{ 'union': 'U', 'base': { '*t': 'E' }, 'discriminator': 't',"
             " 'data': {} }", 12, "'t' is not documented"),
            (ENUM + doc("U", "t") + "{ 'union': 'U', 'base': { '*t': 'E' }, 'discriminator': 't',"
             " 'data': {} }", 13, "mandatory enum member"),
            (ENUM + doc("U", "t") + "{ 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 'u',"
             " 'data': {} }", 13, "no member of the base"),
            (ENUM + STRUCT + doc("U", "t") + "{ 'union': 'U', 'base': { 't': 'E' },"
             " 'discriminator': 't',\n 'data': { 'c': 'S' } }", 20, "'c' is no value of E"),
            (ENUM + STRUCT + doc("U", "x") + "{ 'union': 'U', 'base': { 'x': 'E' },"
             " 'discriminator': 'x', 'data': { 'a': 'S' } }", 19, "member 'x' is also in the base"),
            (doc("A", "x", "y") + "{ 'alternate': 'A', 'data': { 'x': 'int', 'y': 'size' } }", 6,
             "cannot be told apart"),
            (doc("A", "x") + "{ 'alternate': 'A', 'data': { 'x': 'int' } }", 5, "two branches"),
            (doc("c") + "{ 'command': 'c', 'data': 'Nope' }", 4, "is no struct"),
            (doc("c") + "{ 'command': 'c', 'returns': 'Nope' }", 4, "unknown type 'Nope'"),
            (doc("c") + "{ 'command': 'c', 'features': [ 'deprecated' ] }", 4, "not documented"),
            (doc("ev") + "{ 'event': 'ev' }", 4, "must look like"),
            ("{ 'pragma': { 'passed-as-value': [ 'X' ] } }", 1, "'X' is no alternate"),
        ]:
            with self.subTest(text):
                self.refused(text, line, message)

    def test_each_file_is_included_once(self):
        self.write("{ 'include': 'schema.json' }\n" + ENUM, "enum.json")
        schema = self.schema("{ 'include': 'enum.json' }\n{ 'include': 'enum.json' }\n" + STRUCT)
        self.assertEqual(list(schema.entities), ["E", "S"])

    def test_conditions_leave_out_what_does_not_hold(self):
        text = (
            doc("S", "x", "y")
            + "{ 'struct': 'S', 'data': { 'x': 'int', 'y': { 'type': 'int', 'if': 'WITH_Y' } } }\n"
            + doc("T")
            + "{ 'struct': 'T', 'data': {}, 'if': { 'not': { 'any': [ 'A', 'WITH_Y' ] } } }\n"
        )
        without = self.schema(text)
        self.assertEqual([m.name for m in without.entities["S"].members], ["x"])
        self.assertIn("T", without.entities)
        with_y = self.schema(text, ["WITH_Y"])
        self.assertEqual([m.name for m in with_y.entities["S"].members], ["x", "y"])
        self.assertNotIn("T", with_y.entities)

    def test_documentation_is_split_into_its_parts(self):
        schema = self.schema(
            textwrap.dedent(
                """\
                ##
                # = Title
                #
                # Chapter text.
                ##

                ##
                # @do-it:
                #
                # What it does.
                #
                # @x: a member
                #     in two lines
                #
                # Features:
                #
                # @deprecated: use something else
                #
                # Returns: nothing
                #
                # Since: 1.0
                ##
                { 'command': 'do-it', 'data': { '*x': [ 'str' ] }, 'features': [ 'deprecated' ] }
                """
            )
        )
        entry = schema.entities["do-it"].doc
        self.assertEqual(entry.text, "What it does.")
        self.assertEqual(entry.members, {"x": "a member\nin two lines"})
        self.assertEqual(entry.features, {"deprecated": "use something else"})
        self.assertEqual(entry.sections, {"Returns": "nothing", "Since": "1.0"})
        text = DocsGenerator(schema, "x").text()
        self.assertIn("## Title\n\nChapter text.", text)
        self.assertIn("| `x` | list of str, optional | a member in two lines |", text)
        self.assertIn("Feature `deprecated`: use something else", text)


class Output(SchemaTest):
    def test_names_that_cpp_reserves_get_an_underscore(self):
        text = doc("E", "auto", "0.10", "a-b") + "{ 'enum': 'E', 'data': [ 'auto', '0.10', 'a-b' ] }"
        header = CppGenerator(self.schema(text), "x").header()
        self.assertRegex(header, r"auto_,\n.*\n  _0_10,\n.*\n  a_b,")

    def test_a_struct_that_holds_itself_is_boxed(self):
        text = doc("S", "s", "l") + "{ 'struct': 'S', 'data': { '*s': 'S', 'l': [ 'S' ] } }"
        header = CppGenerator(self.schema(text), "x").header()
        self.assertIn("std::unique_ptr<S> s;", header)
        self.assertIn("std::vector<S> l;", header)

    def test_a_struct_that_must_hold_itself_is_refused(self):
        text = doc("S", "s") + "{ 'struct': 'S', 'data': { 's': 'S' } }"
        with self.assertRaisesRegex(SchemaError, "contains itself"):
            CppGenerator(self.schema(text), "x")

    def test_introspection_tells_what_commands_and_events_reach(self):
        text = (
            ENUM
            + STRUCT
            + doc("Unused")
            + "{ 'struct': 'Unused', 'data': {} }\n"
            + doc("U", "t")
            + "{ 'union': 'U', 'base': { 't': 'E' }, 'discriminator': 't', 'data': { 'b': 'S' } }\n"
            + doc("A", "s", "n")
            + "{ 'alternate': 'A', 'data': { 's': 'str', 'n': 'null' } }\n"
            + doc("c", "u", "a")
            + "{ 'command': 'c', 'data': { 'u': 'U', '*a': [ 'A' ] }, 'returns': [ 'size' ],"
            " 'allow-oob': true }\n"
            + doc("EV")
            + "{ 'event': 'EV' }\n"
        )
        entities = Introspection(self.schema(text)).generate()
        by_name = {entity["name"]: entity for entity in entities}
        self.assertEqual(len(by_name), len(entities))
        command = by_name["c"]
        self.assertTrue(command["allow-oob"])
        self.assertEqual(by_name[command["ret-type"]], {
            "name": "[int]", "meta-type": "array", "element-type": "int"})
        arguments = by_name[command["arg-type"]]["members"]
        self.assertEqual([member["name"] for member in arguments], ["u", "a"])
        self.assertIsNone(arguments[1]["default"])
        union = by_name[arguments[0]["type"]]
        self.assertEqual(union["tag"], "t")
        empty, branch = (by_name[variant["type"]] for variant in union["variants"])
        self.assertEqual((empty["members"], branch["members"][0]["name"]), ([], "x"))
        self.assertEqual(by_name["EV"]["arg-type"], empty["name"])
        alternate = by_name[by_name[arguments[1]["type"]]["element-type"]]
        self.assertEqual(alternate["members"], [{"type": "str"}, {"type": "null"}])
        self.assertEqual(by_name["null"]["json-type"], "null")
        objects = [entity for entity in entities if entity["meta-type"] == "object"]
        self.assertEqual(len(objects), 4)  # arguments, U, S and the empty one; Unused is not told
        json.dumps(entities)


if __name__ == "__main__":
    unittest.main()
