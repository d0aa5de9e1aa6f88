"""What every iotest stands on: cases, programs, temporary folders, patterns.

A test file holds functions marked @case or @cases(...), and ends with main(). Each case gets an
Iotest with a folder of its own, which is the working directory of all programs and is removed
afterwards. Output is TAP, which Meson counts case by case. By hand, from the project's root:

    iotests/run iotests/qcow2/convert.py [CASE NAME PART ...]

VISE_IOTEST_KEEP=1 keeps the folders of failed cases.
"""
import functools
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
CLUSTER_SIZES = [512 << shift for shift in range(13)]  # 512 B to 2 MiB
CODECS = ["zlib", "zstd"]

_cases = []
_running = []


class Skip(Exception):
    """The case cannot run here; its text says why."""


class Failure(AssertionError):
    """The case found something wrong."""


def case(function):
    """Marks a function(t) as one case, named after the function."""
    _cases.append((function.__name__.replace("_", " "), function))
    return function


def cases(**values):
    """Marks function(t, a, b) as one case for every combination of the given values."""

    def mark(function):
        for combination in itertools.product(*values.values()):
            arguments = dict(zip(values, combination))
            label = ", ".join(f"{key} {value}" for key, value in arguments.items())
            name = f"{function.__name__.replace('_', ' ')} ({label})"
            _cases.append((name, functools.partial(function, **arguments)))
        return function

    return mark


class Result:
    """What a finished program left: exit code (negative: signal), stdout, stderr, peak memory."""

    def __init__(self, command, code, stdout, stderr):
        self.command, self.code, self.stdout, self.stderr = command, code, stdout, stderr

    @property
    def output(self):
        return self.stdout + self.stderr

    @property
    def json(self):
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise Failure(f"not JSON ({error})\n{self}") from None

    def __str__(self):
        stdout = re.sub(r"((?:vise|qemu)-io> )+", r"\1", self.stdout)  # prompts of silent commands
        return (f"$ {' '.join(map(str, self.command))}\nexit status {self.code}\n"
                f"stdout: {stdout[-4000:]}\nstderr: {self.stderr[-4000:]}")


def _limit_resources():
    """A hostile image must not be able to take the machine down with the test."""
    if not os.environ.get("VISE_SANITIZED"):  # AddressSanitizer reserves terabytes of address space
        resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Process:
    """A vise-io or qemu-io that stays open and takes commands, to hold an image while others try."""

    def __init__(self, command, cwd, env):
        self.command = command
        self.process = subprocess.Popen(list(map(str, command)), cwd=cwd, env=env,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, preexec_fn=_limit_resources)
        _running.append(self.process)
        self.buffer = b""

    def wait_for(self, text, seconds=30):
        """Reads output until `text` shows up; returns all that came before it."""
        deadline = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            while text.encode() not in self.buffer:
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    late = " (time limit)" if time.monotonic() >= deadline else ""
                    raise Failure(f"{self.command}: ended{late} before it printed {text!r}:\n"
                                  f"{self.buffer.decode(errors='replace')}")
                self.buffer += chunk
        finally:
            timer.cancel()
        before, _, self.buffer = self.buffer.partition(text.encode())
        return before.decode(errors="replace")

    def command_line(self, line):
        """Gives one command and returns its output, up to the next prompt."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.wait_for("-io> ")

    def end(self):
        """Ends it by `quit`; returns the exit code."""
        try:
            self.process.stdin.write(b"quit\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.stdout.read()
        self.process.stdout.close()
        code = self.process.wait(30)
        _running.remove(self.process)
        return code

    def kill(self):
        self.process.kill()
        self.process.communicate()
        _running.remove(self.process)


class Iotest:
    """One case's folder and programs. Relative file names are inside the folder."""

    def __init__(self, folder):
        self.dir = Path(folder)
        self.tools = Path(os.environ.get("VISE_TOOLS", "build/tools")).resolve()
        self.build = self.tools.parent
        self.env = dict(os.environ, LC_ALL="C.UTF-8")
        self.mounts = []

    # ---- programs

    def run(self, *command, code=0, stdin="", timeout=120, env=None):
        """Runs a program. `code`: the exit status that must come, a collection of them, or None
        for any that is not a crash."""
        command = [str(word) for word in command]
        process = subprocess.Popen(command, cwd=self.dir, env=dict(self.env, **(env or {})),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, preexec_fn=_limit_resources)
        _running.append(process)
        try:
            data = stdin if isinstance(stdin, bytes) else stdin.encode()
            stdout, stderr = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failure(f"still running after {timeout} s: {' '.join(command)}") from None
        finally:
            _running.remove(process)
        result = Result(command, process.returncode, stdout.decode(errors="replace"),
                        stderr.decode(errors="replace"))
        allowed = range(0, 128) if code is None else [code] if isinstance(code, int) else code
        if result.code not in allowed:
            raise Failure(f"exit status must be {allowed}\n{result}")
        return result

    def vise_img(self, *arguments, **how):
        return self.run(self.tools / "vise-img", *arguments, **how)

    def vise_io(self, *arguments, **how):
        """vise_io("-f", "qcow2", "a.qcow2", commands=["read 0 512", …], code=0)"""
        return self.run(self.tools / "vise-io", *_with_commands(arguments, how), **how)

    def qemu_img(self, *arguments, **how):
        return self.run(installed("qemu-img"), *arguments, **how)

    def qemu_io(self, *arguments, **how):
        return self.run(installed("qemu-io"), *_with_commands(arguments, how), **how)

    def hold(self, program, *arguments):
        """Starts `vise-io` or `qemu-io` and returns it as a Process once it has opened its image."""
        path = self.tools / program if program.startswith("vise") else installed(program)
        process = Process([path, *arguments], self.dir, self.env)
        process.wait_for("-io> ")
        return process

    # ---- files

    def path(self, name):
        return self.dir / name

    def write(self, name, data):
        self.path(name).write_bytes(data)
        return name

    def read(self, name):
        return self.path(name).read_bytes()

    def patch(self, name, offset, data):
        with open(self.path(name), "r+b") as file:
            file.seek(offset)
            file.write(data)

    def digest(self, name):
        return hashlib.sha256(self.read(name)).hexdigest()

    def allocated(self, name):
        return self.path(name).stat().st_blocks * 512

    # ---- what must hold

    def check(self, condition, message):
        if not condition:
            raise Failure(str(message))

    def equal(self, left, right, what="values"):
        if left != right:
            raise Failure(f"{what} differ:\n  {str(left)[:3000]}\n  {str(right)[:3000]}")

    def fails_clearly(self, result, *texts):
        """One `vise-…: …` line on stderr that holds all `texts` (regular expressions)."""
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING: ")]
        first = lines[0] if lines else ""
        self.check(re.match(r"vise-[\w-]+: ", first), f"no 'vise-…: …' line on stderr\n{result}")
        for text in texts:
            self.check(re.search(text, result.stderr, re.I), f"stderr lacks /{text}/\n{result}")

    def sound(self, image, format="qcow2"):
        """`check` of our program and, where installed, of qemu-img finds nothing."""
        ours = self.vise_img("check", "-f", format, image)
        if has("qemu-img"):
            self.qemu_img("check", "-f", format, image)
        return ours

    def reads_as(self, image, expected, format="qcow2"):
        """`image` holds exactly the bytes of the raw file `expected`, for us and for qemu-img."""
        self.vise_img("compare", "-f", format, "-F", "raw", image, expected)
        if has("qemu-img"):
            self.qemu_img("compare", "-f", format, "-F", "raw", image, expected)

    def map_of(self, program, image, *arguments):
        """The map as a list, without what qemu-img 7.2 does not print."""
        entries = getattr(self, program)("map", "--output=json", *arguments, image).json
        return [{key: value for key, value in entry.items() if key not in ("compressed", "stored-length")}
                for entry in entries]

    # ---- special file systems

    def tmpfs(self, name, size):
        """A small file system of its own at `name`, unmounted with the case."""
        if os.geteuid() != 0 or not shutil.which("mount"):
            raise Skip("mounting a tmpfs needs root")
        path = self.path(name)
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        self.mounts.append(path)
        return path

    def reflink_fs(self, name, size):
        """An XFS file system at `name` whose files can share space, unmounted with the case."""
        if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
            raise Skip("a file system whose files share space needs root and mkfs.xfs")
        image = self.path(name + ".xfs")
        with open(image, "wb") as file:
            file.truncate(size)
        self.run("mkfs.xfs", "-q", "-m", "reflink=1", image)
        path = self.path(name)
        path.mkdir()
        done = subprocess.run(["mount", "-o", "loop", str(image), str(path)], capture_output=True,
                              text=True, check=False)
        if done.returncode:
            raise Skip(f"cannot mount an XFS file system: {done.stderr.strip()}")
        self.mounts.append(path)
        return path

    def make_read_only(self, name):
        """Remounts a tmpfs() read-only."""
        self.run("mount", "-o", "remount,ro", self.path(name))

    def close(self):
        for path in reversed(self.mounts):
            subprocess.run(["umount", "-l", str(path)], check=False)
        self.mounts = []


def _with_commands(arguments, how):
    """vise-io's arguments: commands as -c options, or on stdin where they are many."""
    commands = how.pop("commands", [])
    if len(commands) > 64:
        how["stdin"] = "".join(command + "\n" for command in commands)
        return list(arguments)
    return list(arguments) + [word for command in commands for word in ("-c", command)]


def has(program):
    return shutil.which(program) is not None


def installed(program):
    path = shutil.which(program)
    if path is None:
        raise Skip(f"{program} is not installed")
    return path


# ---- patterns

def mixed_data(size, unit, seed):
    """`size` bytes, in stretches of about `unit`: zeroes, one byte repeated, text, noise, half noise."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(2, 9)).hex() for _ in range(64)]
    out = bytearray()
    while len(out) < size:
        length = source.choice([unit, unit, 2 * unit, unit // 2 or 1, source.randint(1, 3 * unit)])
        kind = source.randrange(6)
        if kind == 0:
            out += bytes(length)
        elif kind == 1:
            out += bytes([source.randrange(1, 256)]) * length
        elif kind in (2, 3):
            text = " ".join(source.choices(words, k=min(length // 6 + 1, 2000))).encode()
            out += (text * (length // len(text) + 1))[:length]
        elif kind == 4:
            out += source.randbytes(length)
        else:
            out += source.randbytes(length // 2) + bytes(length - length // 2)
    return bytes(out[:size])


def image_size_for(cluster_size):
    """Large enough for several L2 tables of small clusters, and not a multiple of the cluster size."""
    return max(MIB, 5 * cluster_size) + 3 * 512


# ---- running

def _run_case(function):
    folder = tempfile.mkdtemp(prefix="vise-iotest-")
    test = Iotest(folder)
    keep = False
    try:
        function(test)
        return "ok", "", ""
    except Skip as reason:
        return "ok", f" # SKIP {reason}", ""
    except Exception as error:  # noqa: BLE001: whatever a case raises is that case's failure
        keep = bool(os.environ.get("VISE_IOTEST_KEEP"))
        where = f"\n(kept {folder})" if keep else ""
        detail = str(error) if isinstance(error, Failure) else ""
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if not frame.filename.endswith("vise_iotest.py")]
        line = f"{mine[-1].filename}:{mine[-1].lineno}: {mine[-1].line}" if mine else ""
        return "not ok", "", f"{line}\n{detail or traceback.format_exc()}{where}"
    finally:
        for process in list(_running):
            process.kill()
            process.wait()
            _running.remove(process)
        test.close()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main():
    """Runs the cases of the calling file whose names hold one of the program's arguments."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = sys.argv[1:]
    chosen = [entry for entry in _cases if not wanted or any(part in entry[0] for part in wanted)]
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    for number, (name, function) in enumerate(chosen, 1):
        verdict, remark, detail = _run_case(function)
        failed += verdict != "ok"
        print(f"{verdict} {number} - {name}{remark}", flush=True)
        for line in detail.rstrip().splitlines():
            print(f"# {line}", flush=True)
    sys.exit(1 if failed else 0)
