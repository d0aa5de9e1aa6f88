"""NBD servers for iotests: ours and qemu-nbd, on a Unix socket in the case's folder."""
import os
import re
import signal
import socket
import subprocess
import time

import vise_iotest
from vise_iotest import Failure, installed


class NbdServer:
    """vise-nbd, qemu-nbd or nbdkit, listening on `path`. Ends with the case if not before."""

    def __init__(self, t, program, *arguments, name="s.sock", persistent=True, prefix=()):
        self.t, self.path, self.program = t, str(t.path(name)), program
        binary = str(t.tools / program) if program.startswith("vise") else installed(program)
        keep = ["-t"] if persistent and program.endswith("-nbd") else []
        where = ["-U", self.path, "-f"] if program == "nbdkit" else ["-k", self.path]
        command = [*prefix, binary, *where, *keep, *map(str, arguments)]
        self.log = open(t.path(name + ".log"), "w+b")
        self.process = subprocess.Popen(command, cwd=t.dir, env=t.env, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        vise_iotest._running.append(self.process)
        self._wait_until_it_listens()

    def _wait_until_it_listens(self):
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise Failure(f"{self.program} has ended with {self.process.returncode}: {self.errors()}")
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(self.path)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise Failure(f"{self.program} does not listen") from None
                time.sleep(0.02)
            finally:
                probe.close()

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.path}"

    def errors(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def wait(self, seconds=30):
        """Waits for it to end by itself; the exit status."""
        code = self.process.wait(seconds)
        self._forget()
        return code

    def stop(self, how=signal.SIGTERM):
        """Ends it; the exit status."""
        self.process.send_signal(how)
        return self.wait()

    def _forget(self):
        vise_iotest._running.remove(self.process)
        self.log.close()


def serve(t, *arguments, program="vise-nbd", **how):
    return NbdServer(t, program, *arguments, **how)


def status_of(t, uri, context="base:allocation"):
    """[(offset, length, status), …] as nbdinfo tells it, equal neighbours as one."""
    out = t.run(installed("nbdinfo"), f"--map={context}", uri).stdout
    runs = []
    for line in out.splitlines():
        offset, length, status = map(int, re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)", line).groups())
        if runs and runs[-1][2] == status:
            runs[-1] = (runs[-1][0], runs[-1][1] + length, status)
        else:
            runs.append((offset, length, status))
    return runs


def nbdsh(t, server, *lines, export=""):
    """Runs a Python script with `h` connected to the server."""
    script = "\n".join(["h.add_meta_context('base:allocation')", f"h.connect_uri({server.uri(export)!r})",
                        *lines])
    # Debian's Python has the module; another may come first in PATH.
    return t.run(installed("nbdsh"), "-c", script, env={"PATH": "/usr/bin:/bin"})
