"""A small QMP client, and storage daemons to talk to: ours and, as a peer, QEMU's."""
import json
import os
import signal
import socket
import subprocess
import time

from vise_iotest import Failure, _limit_resources, _running, installed


class QmpError(Exception):
    """The answer was an error; `.class_name` and the text tell which."""

    def __init__(self, error):
        super().__init__(error["desc"])
        self.class_name = error["class"]


class Qmp:
    """One connection to a monitor."""

    def __init__(self, path, negotiate=True, seconds=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self.buffer = b""
        self.events = []
        self.greeting = self.message()
        if negotiate:
            self.execute("qmp_capabilities")

    def message(self):
        while b"\n" not in self.buffer:
            chunk = self.socket.recv(1 << 20)
            if not chunk:
                raise Failure("the monitor closed the connection")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def answer(self):
        """The next message that is no event; those are kept in `.events`."""
        while True:
            message = self.message()
            if "event" not in message:
                return message
            self.events.append(message)

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def raw(self, data):
        self.send(data)
        return self.answer()

    def execute(self, name, arguments=None, /, **more):
        """The command's result. Arguments: a dictionary, or names with `_` for `-`."""
        arguments = dict(arguments or {})
        arguments.update({key.replace("_", "-"): value for key, value in more.items()})
        request = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        answer = self.raw(json.dumps(request) + "\n")
        if "error" in answer:
            raise QmpError(answer["error"])
        if "return" not in answer:
            raise Failure(f"no answer to {name}: {answer}")
        return answer["return"]

    def fails(self, name, arguments=None, /, **more):
        """The error text of a command that must fail."""
        try:
            result = self.execute(name, arguments, **more)
        except QmpError as error:
            return f"{error.class_name}: {error}"
        raise Failure(f"{name} {arguments} {more} must fail, but gave {result}")

    def wait_event(self, name, **data):
        """The first event of that name whose data holds `data`, kept or still to come."""
        while True:
            for index, event in enumerate(self.events):
                found = event.get("data", {})
                if event["event"] == name and all(found.get(k) == v for k, v in data.items()):
                    return self.events.pop(index)
            message = self.message()
            if "event" not in message:
                raise Failure(f"an answer nobody waited for: {message}")
            self.events.append(message)

    def wait_job(self, job):
        """Waits for BLOCK_JOB_COMPLETED or _CANCELLED; returns its data. An error is a Failure."""
        while True:
            for index, event in enumerate(self.events):
                done = event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
                if done and event["data"]["device"] == job:
                    del self.events[index]
                    self.wait_event("JOB_STATUS_CHANGE", id=job, status="null")
                    if "error" in event["data"]:
                        raise Failure(f"job {job}: {event['data']['error']}")
                    return event
            self.events.append(self.message())

    def close(self):
        self.socket.close()


class Daemon:
    """A storage daemon with one monitor on a socket. `binary`: "vise" or "qemu"."""

    def __init__(self, test, *arguments, binary="vise", name="qmp"):
        self.path = test.path(f"{name}.sock")
        ready = test.path(f"{name}.pid")
        ready.unlink(missing_ok=True)
        program = (test.tools / "vise-storage-daemon" if binary == "vise"
                   else installed("qemu-storage-daemon"))
        self.command = [program, "--chardev", f"socket,id=m,path={self.path},server=on,wait=off",
                        "--monitor", "m", "--pidfile", ready, *arguments]
        self.stderr = open(test.path(f"{name}.stderr"), "w+")
        self.process = subprocess.Popen(list(map(str, self.command)), cwd=test.dir, env=test.env,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=self.stderr, preexec_fn=_limit_resources)
        _running.append(self.process)
        deadline = time.monotonic() + 30
        while True:
            try:
                # QEMU's greets twice, or never, who comes before it is through with its options.
                if not ready.exists():
                    raise FileNotFoundError
                self.qmp = Qmp(self.path)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"the daemon did not start:\n{self.output()}") from None
                time.sleep(0.01)

    def output(self):
        self.stderr.flush()
        self.stderr.seek(0)
        return self.stderr.read()

    def execute(self, name, arguments=None, /, **more):
        return self.qmp.execute(name, arguments, **more)

    def wait(self, code=0):
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise Failure(f"the daemon does not end:\n{self.output()}") from None
        _running.remove(self.process)
        if status != code:
            raise Failure(f"the daemon ended with {status}, not {code}:\n{self.output()}")

    def quit(self):
        self.qmp.execute("quit")
        self.wait()
        self.qmp.close()

    def kill(self, how=signal.SIGKILL):
        os.kill(self.process.pid, how)
        self.wait(-how if how == signal.SIGKILL else 0)
        self.qmp.close()
