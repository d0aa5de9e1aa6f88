#!/usr/bin/env python3
"""Every option and command that --help lists stands in the man page.

usage: man_test.py VISE_IMG VISE_IO VISE_NBD VISE_STORAGE_DAEMON MAN_FOLDER"""

import re
import subprocess
import sys


def output(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def entries(text):
    """The option columns of a help text: '-f, --format=FORMAT' and the like."""
    for line in text.splitlines():
        match = re.match(r"^  (?:    )?(-\S.*?)(?:\s{2,}.*)?$", line)
        if match:
            yield match[1]


def main(vise_img, vise_io, vise_nbd, daemon, folder):
    missing = []

    def compare(page, part, text, names):
        lines = {line.removeprefix(".B ") for line in text.splitlines()}
        missing.extend(f"{page}, {part}: {name}" for name in names if name not in lines)

    with open(f"{folder}/vise-img.1", encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    help_text = output(vise_img, "--help")
    compare("vise-img.1", "options", page, entries(help_text))
    listed = help_text.split("Subcommands:\n")[1].split("\n\n")[0]
    for command in re.findall(r"^  (\w+) ", listed, re.M):
        found = re.search(rf"^\.SS {command} .*?(?=^\.S[SH] )", page, re.M | re.S)
        section = found[0] if found else ""
        compare("vise-img.1", command, section, entries(output(vise_img, command, "--help")))

    with open(f"{folder}/vise-io.1", encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    compare("vise-io.1", "options", page, entries(output(vise_io, "--help")))
    for line in output(vise_io, "-c", "help").splitlines():
        if " -- " in line:
            usage = line.split(" -- ")[0].strip()
            compare("vise-io.1", "commands", page, [usage])
            name = usage.split()[0]
            compare("vise-io.1", name, page, entries(output(vise_io, "-c", f"help {name}")))

    with open(f"{folder}/vise-nbd.1", encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    compare("vise-nbd.1", "options", page, entries(output(vise_nbd, "--help")))
    with open(f"{folder}/vise-storage-daemon.1", encoding="utf-8") as file:
        page = file.read().replace("\\-", "-")
    compare("vise-storage-daemon.1", "options", page, entries(output(daemon, "--help")))

    for entry in missing:
        print(f"not in {entry}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
