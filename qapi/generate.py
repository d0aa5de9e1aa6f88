#!/usr/bin/env python3
"""Makes C++, introspection data or documentation from the QAPI schema.

    generate.py --output DIR SCHEMA      qapi-{types,commands,introspect}.{h,cc} in DIR
    generate.py --docs FILE SCHEMA       documentation in Markdown, of the page that FILE names
    generate.py --check-docs FILE SCHEMA exit 1 if FILE is not what --docs would write

Needs Python 3.11 and nothing else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gen import introspect  # noqa: E402
from gen.commands import CommandGenerator  # noqa: E402
from gen.cpp import CppGenerator  # noqa: E402
from gen.docs import PAGES, DocsGenerator  # noqa: E402
from gen.parser import SchemaError  # noqa: E402
from gen.schema import Schema  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schema", type=Path)
    parser.add_argument("--define", action="append", default=[], help="a name 'if' may ask for")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, metavar="DIR")
    action.add_argument("--docs", type=Path, metavar="FILE")
    action.add_argument("--check-docs", type=Path, metavar="FILE")
    options = parser.parse_args()

    source = f"qapi/{options.schema.name}"
    try:
        schema = Schema(options.schema, options.define)
        if options.output:
            write_cpp(schema, source, options.output)
            return 0
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 1
    page = (options.docs or options.check_docs).name
    if page not in PAGES:
        print(f"there is no page '{page}', only {', '.join(PAGES)}", file=sys.stderr)
        return 1
    docs = DocsGenerator(schema, source, page).text()
    if options.docs:
        options.docs.write_text(docs, encoding="utf-8")
        return 0
    current = options.check_docs.read_text(encoding="utf-8") if options.check_docs.exists() else ""
    if current == docs:
        return 0
    print(f"{options.check_docs} does not fit the schema; write it anew with:\n"
          f"  qapi/generate.py --docs docs/{page} {source}", file=sys.stderr)
    return 1


def write_cpp(schema, source, directory):
    cpp = CppGenerator(schema, source)
    commands = CommandGenerator(schema, source, cpp)
    files = {
        "qapi-commands.h": commands.header(),
        "qapi-commands.cc": commands.definitions(),
        "qapi-types.h": cpp.header(),
        "qapi-types.cc": cpp.definitions(),
        "qapi-introspect.h": introspect.cpp_header(source),
        "qapi-introspect.cc": introspect.cpp_source(schema, source),
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
