"""A client that keeps writing to an NBD export, and knows what the disk must hold."""
import random
import threading

from vise_iotest import Failure

BLOCK = 4096


class Writer:
    """Random writes, zeroes, discards and reads through qemu-io, until stop() or a failure.

    `disk` is what the export holds at first. Afterwards `.disk` is what it must hold; for a server
    that was killed, allows() says so block by block: what is not flushed may be there or not.
    """

    def __init__(self, t, uri, disk, seed=1, discard=True):
        self.t, self.disk = t, bytearray(disk)
        self.stable = bytes(disk)
        self.unflushed = {}  # block: contents it has had since the last flush
        self.random = random.Random(seed)
        self.discard = discard
        self.done = 0
        self.error = None
        self.ending = threading.Event()
        self.some = threading.Condition()
        self.process = t.hold("qemu-io", "-d", "unmap", "-f", "raw", uri)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _command(self, line):
        output = self.process.command_line(line)
        if "rror" in output or "failed" in output or "invalid" in output:
            raise Failure(f"{line}: {output}")

    def _step(self):
        kind = self.random.choice(["write"] * 5 + ["zero", "discard", "read", "read", "flush"])
        length = self.random.choice([1, 1, 2, 3, 16, 32, 33]) * BLOCK
        offset = self.random.randrange((len(self.disk) - length) // BLOCK + 1) * BLOCK
        if kind == "flush":
            self._command("flush")
            self.stable = bytes(self.disk)
            self.unflushed.clear()
            return
        if kind == "read":
            # One value a block is enough to see: what is older shows another one.
            value = self.disk[offset]
            same = offset
            while same < offset + length and self.disk[same:same + BLOCK] == bytes([value]) * BLOCK:
                same += BLOCK
            if same > offset:
                self._command(f"read -P {value} {offset} {same - offset}")
            return
        if kind == "discard" and not self.discard:
            kind = "zero"
        value = self.random.randrange(1, 256) if kind == "write" else 0
        if kind == "discard":  # whole clusters at least, so that it is sure to become zeros
            kind = "zero"
            line = f"write -z -u {offset} {length}"
        else:
            line = f"write {'-z' if kind == 'zero' else f'-P {value}'} {offset} {length}"
        for block in range(offset, offset + length, BLOCK):
            self.unflushed.setdefault(block, []).append(bytes([value]) * BLOCK)
        self._command(line)
        self.disk[offset:offset + length] = bytes([value]) * length

    def _run(self):
        try:
            while not self.ending.is_set():
                self._step()
                with self.some:
                    self.done += 1
                    self.some.notify_all()
        except (Failure, OSError, ValueError) as error:
            self.error = error
            with self.some:
                self.some.notify_all()

    def wait(self, count):
        """Returns when `count` more requests have been done."""
        with self.some:
            until = self.done + count
            if not self.some.wait_for(lambda: self.done >= until or self.error, 60) or self.error:
                raise Failure(f"the writer is stuck after {self.done} requests: {self.error}")

    def stop(self):
        """Ends it, flushed. A failure of one of its requests is one of the case."""
        self.ending.set()
        self.thread.join(60)
        if self.error:
            raise Failure(f"the writer failed after {self.done} requests: {self.error}")
        self._command("flush")
        self.t.equal(self.process.end(), 0, "exit status of the writer")
        return bytes(self.disk)

    def leave(self):
        """Ends it after its server was killed."""
        self.ending.set()
        self.process.process.kill()
        self.thread.join(60)

    def allows(self, found):
        """Is `found` what the disk may hold after the server was killed?"""
        for block in range(0, len(self.stable), BLOCK):
            now = bytes(found[block:block + BLOCK])
            if now != self.stable[block:block + BLOCK] and now not in self.unflushed.get(block, []):
                return False
        return len(found) == len(self.stable)
