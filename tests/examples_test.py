#!/usr/bin/env python3
"""The examples in docs/ build against an installed Vise alone, load and work.

Usage: examples_test.py MESON SOURCE_ROOT BUILD_ROOT CXX...
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

meson, source, build = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
compiler = " ".join(sys.argv[4:])
number = 0
failed = False


def report(good, what, detail=""):
    global number, failed
    number += 1
    failed = failed or not good
    print(f"{'ok' if good else 'not ok'} {number} - {what}", flush=True)
    for line in detail.splitlines() if not good else []:
        print(f"# {line}")


def run(command, **variables):
    return subprocess.run(command, env={**os.environ, **variables}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def install(root):
    done = run([meson, "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", root])
    report(done.returncode == 0, "Vise installs", done.stdout + done.stderr)
    configs = list(root.glob("**/vise.pc"))
    report(len(configs) == 1, "with one vise.pc", str(configs))
    return configs[0]


def make(example, config, prefix):
    pkg_config = f"pkg-config --define-variable=prefix={prefix}"
    done = run(["make", "-s", "-C", example, f"CXX={compiler}", f"PKG_CONFIG={pkg_config}"],
               PKG_CONFIG_PATH=str(config.parent), MAKEFLAGS="")
    report(done.returncode == 0 and not done.stderr, f"{example.name} builds",
           done.stdout + done.stderr)


def check_document():
    """Every piece of code that docs/drivers.md shows is a piece of an example."""
    examples = [path.read_text() for path in (source / "docs/examples").glob("*/*")]
    blocks = re.findall(r"```(?:cpp|make)\n(.*?)```", (source / "docs/drivers.md").read_text(),
                        re.DOTALL)
    report(bool(blocks), "docs/drivers.md shows code")
    for block in blocks:
        first = block.splitlines()[0]
        report(any(block in text for text in examples), f"docs/drivers.md: {first}",
               "this block is in none of docs/examples/:\n" + block)


def main():
    print("TAP version 13")
    check_document()
    with tempfile.TemporaryDirectory(prefix="vise-examples-") as name:
        work = Path(name)
        config = install(work / "root")
        # PREFIX/lib/pkgconfig/vise.pc or PREFIX/lib/MACHINE/pkgconfig/vise.pc
        prefix = config.parents[3 if config.parents[2].name.startswith("lib") else 2]
        for example in ("rot13", "embed"):
            run(["cp", "-r", source / "docs/examples" / example, work])
            make(work / example, config, prefix)

        image = work / "image"
        image.write_text("Uryyb, jbeyq\n")
        library = {"LD_LIBRARY_PATH": str(config.parents[1])}
        plugins = {**library, "VISE_PLUGIN_PATH": f"/nowhere:{work / 'rot13'}"}
        file = "'file':{'driver':'raw','file':{'driver':'file','filename':'%s'}}" % image
        cat = work / "embed" / "cat"

        done = run([cat, image], **library)
        report(done.stdout == "Uryyb, jbeyq\n", "an embedding program reads an image", done.stderr)
        done = run([cat, "json:{'driver':'rot13',%s}" % file], **plugins)
        report(done.stdout == "Hello, world\n", "the filter loads from VISE_PLUGIN_PATH",
               done.stdout + done.stderr)
        done = run([cat, "json:{'driver':'rot13','shift':26,%s}" % file], **plugins)
        report("shift" in done.stderr, "its options are checked", done.stderr)
        done = run([cat, "json:{'driver':'rot13',%s}" % file], **library)
        report("Unknown driver 'rot13'" in done.stderr, "without the path it is not found",
               done.stderr)
        done = run([cat, "json:{'driver':'compress',%s}" % file], **library)
        report("cannot store compressed data" in done.stderr,
               "compress loads from where it is installed", done.stderr)
        done = run([cat, "json:{'driver':'nbd','path':'%s'}" % (work / "nobody")], **library)
        report("Failed to connect" in done.stderr, "so does what needs libnbd", done.stderr)
    print(f"1..{number}")
    sys.exit(1 if failed else 0)


main()
