#!/usr/bin/env python3
"""Each header compiles alone, and the public ones pull in neither GLib, liburing, JSON nor fmt.

    headers_test.py SOURCE-ROOT BUILD-ROOT COMPILER...
"""
import concurrent.futures
import os
import re
import subprocess
import sys
from pathlib import Path

source, build, compiler = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
HEAVY = re.compile(r"/(glib\.h|gio/|liburing\.h|nlohmann/|fmt/)")


def try_header(header):
    roots = [source / "include", source / "block", source, build]
    flags = ["-std=c++20", "-fsyntax-only", "-H", "-x", "c++", "-D_GNU_SOURCE"]
    command = [*compiler, *flags, *[f"-I{root}" for root in roots], str(source / header)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"does not compile alone:\n{done.stderr[-2000:]}"
    heavy = {line.split()[-1] for line in done.stderr.splitlines() if HEAVY.search(line)}
    return f"pulls in {sorted(heavy)[0]}" if heavy else ""


headers = sorted(str(path.relative_to(source)) for folder in ("include/vise", "block", "tools")
                 for path in (source / folder).rglob("*.h"))
print(f"1..{len(headers)}")
failed = 0
with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for number, (header, problem) in enumerate(zip(headers, pool.map(try_header, headers)), 1):
        failed += bool(problem)
        print(f"{'not ok' if problem else 'ok'} {number} - {header}")
        for line in problem.splitlines():
            print(f"# {line}")
sys.exit(1 if failed else 0)
