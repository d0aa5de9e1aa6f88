"""docs/guide.md: every command and script of it is run, in its order, with writes in between."""
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from emulator import Emulator
from vise_iotest import KIB, MIB, case, main

GUIDE = Path(__file__).resolve().parents[2] / "docs/guide.md"


def blocks():
    """(kind, name, text) of each fenced block."""
    return re.findall(r"^```(\w*) ?(\S*)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


class Disk:
    """What the guest has written: a byte for each of the first MiB."""

    def __init__(self, t):
        self.t, self.uri, self.bytes, self.rounds = t, None, {}, 0

    def work(self):
        """New data, data over older data, and zeros where there was some."""
        self.rounds += 1
        written = {self.rounds: self.rounds, 20: 100 + self.rounds, 30 + self.rounds % 2: 0}
        self.bytes.update(written)
        self.t.qemu_io("-f", "raw", self.uri, commands=[
            *[f"write {'-z -u' if byte == 0 else f'-P {byte}'} {place * MIB} {MIB}"
              for place, byte in written.items()], f"write -P 200 {40 * MIB + self.rounds * 4096} 4096"])

    def is_in(self, image, bytes):
        self.t.qemu_io("-r", "-f", "qcow2", image,
                       commands=[f"read -P {byte} {place * MIB} {MIB}" for place, byte in bytes.items()])


def end_daemon(t):
    """Ends one that a failed case has left."""
    pidfile = t.path("daemon.pid")
    if not pidfile.exists():
        return
    pid = int(pidfile.read_text(encoding="utf-8"))
    program = Path(f"/proc/{pid}/exe")
    if program.exists() and program.resolve().name == "vise-storage-daemon":
        os.kill(pid, signal.SIGKILL)


def run_block(t, disk, text, instants):
    start = re.search(r"^\./start (\S+)$", text, re.M)
    backup = re.search(r"^\./backup (\S+)$", text, re.M)
    if backup:
        disk.work()
        instants[backup[1]] = dict(disk.bytes)
    out = t.run("bash", "-euo", "pipefail", "-c", text).stdout
    if start and start[1] == "again.qcow2":
        disk.bytes = disk.bytes if "kill" in text else dict(instants["mon-1100"])
    return out


def run_guide(t, disk, instants):
    outputs = []
    for kind, name, text in blocks():
        if name:
            t.write(name, text.encode())
        elif "qemu-system-x86_64" in text:
            disk.uri = re.search(r"file=(\S+)", text)[1]
            disk.work()
        elif kind == "sh":
            outputs.append(run_block(t, disk, text, instants))
            if "block-stream" in text:
                disk.work()
    return "".join(outputs)


@case
def the_guide_does_what_it_says(t):
    t.env["PATH"] = f"{t.tools}:{t.env['PATH']}"
    disk, instants = Disk(t), {}
    try:
        output = run_guide(t, disk, instants)
    finally:
        end_daemon(t)
    t.check("mon-1000.qcow2 is part of mon-1100.qcow2 now" in output, output)
    names = {path.name for path in t.path("backups").iterdir()}
    kept = [name for name in instants if name != "mon-1000"]
    t.equal(names, {"newest", *[f"{name}.qcow2" for name in kept]}, "backups")
    for name in kept:
        disk.is_in(f"backups/{name}.qcow2", instants[name])
    disk.is_in("restored.qcow2", instants["mon-1100"])
    disk.is_in("again.qcow2", disk.bytes)
    for image in ["disk", "restored", "again", *[f"backups/{name}" for name in kept]]:
        t.sound(f"{image}.qcow2")
    info = {name: t.qemu_img("info", "--output=json", f"backups/{name}.qcow2").json for name in kept}
    t.equal({name: each.get("backing-filename") for name, each in info.items()},
            {"mon-0900": None, "mon-1100": "mon-0900.qcow2", "tue-0900": None, "tue-1000": None}, "backing images")
    t.check("backing-filename" not in t.qemu_img("info", "--output=json", "again.qcow2").json, "again.qcow2")
    for image in ["backups/mon-1100.qcow2", "disk.qcow2"]:  # one was merged, the other compressed in place
        stored = t.qemu_img("check", "--output=json", image).json
        t.equal(stored["compressed-clusters"], stored["allocated-clusters"], f"clusters of {image}")



@case
def a_guest_finds_the_disk_where_the_guide_says(t):
    t.env["PATH"] = f"{t.tools}:{t.env['PATH']}"
    commands = [text for kind, name, text in blocks() if kind == "sh" and not name]
    drive = next(re.search(r"-drive (\S+)", text)[1] for text in commands if "qemu-system" in text)
    scripts(t, "start", "stop", "qmp.py")
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", "512M")
    try:
        t.run("./start", "disk.qcow2")
        guest = Emulator(t, drive)
        guest.line("/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && file a a 4096 && sync")
        guest.line("rm /mnt/a && fstrim /mnt")
        guest.power_off()
        t.run("./stop")
    finally:
        end_daemon(t)
    t.check(t.allocated("disk.qcow2") < 4 * MIB, "the guest's trimming gives space back")
    t.sound("disk.qcow2")


def scripts(t, *names):
    for kind, name, text in blocks():
        if name in names:
            t.write(name, text.encode())
            t.path(name).chmod(0o755)


def change(t, script, old, new):
    text = t.read(script).decode()
    t.check(old in text, f"{old} in {script}")
    t.write(script, text.replace(old, new).encode())


def interrupt_while_it_copies(t, name):
    """Ctrl-C for ./backup NAME, once its job has begun to write."""
    target = t.path(f"backups/{name}.qcow2")
    process = subprocess.Popen(["./backup", name], cwd=t.dir, env=t.env, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not target.exists() or target.stat().st_size < 512 * KIB:
        t.check(process.poll() is None and time.monotonic() < until, f"{name} is being written")
    process.send_signal(signal.SIGINT)
    t.check(process.wait(60) != 0, "exit status of an interrupted backup")


@case
def no_change_is_missing_after_a_backup_that_failed_or_was_interrupted(t):
    t.env["PATH"] = f"{t.tools}:{t.env['PATH']}"
    scripts(t, "start", "stop", "qmp.py", "backup")
    uri = "nbd+unix:///disk?socket=nbd.sock"
    newest = t.path("backups/newest")
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", "64M")
    t.write("noise", os.urandom(4 * MIB))
    try:
        t.run("./start", "disk.qcow2")
        t.run("./backup", "one")
        t.qemu_io("-f", "raw", uri, commands=["write -P 1 0 64k", "write -s noise 8M 4M"])
        good = t.read("backup").decode()

        change(t, "backup", 'driver="qcow2"', 'driver="nonesuch"')
        t.run("./backup", "two", code=1)
        t.equal(os.readlink(newest), "one.qcow2", "the newest backup after one that could not begin")
        t.write("backup", good.encode())

        change(t, "backup", '"compress": True', '"compress": True, "speed": 65536')
        interrupt_while_it_copies(t, "three")
        t.check(not newest.exists(), "nobody knows which backup is the newest")
        refused = t.run("./backup", "four", code=1)
        t.check("still running" in refused.stderr, refused)
        t.run("./qmp.py", "block-job-set-speed", '{"device": "backup", "speed": 0}')
        t.write("backup", good.encode())
        while "backup" in t.run("./qmp.py", "query-jobs").stdout:
            pass
        t.run("./backup", "five")
        t.qemu_io("-f", "raw", uri, commands=["write -P 2 64k 64k"])
        t.run("./backup", "six")
        t.run("./stop")
    finally:
        end_daemon(t)
    t.equal(sorted(path.name for path in t.path("backups").iterdir()),
            ["five.qcow2", "newest", "one.qcow2", "six.qcow2"], "backups")
    info = t.qemu_img("info", "--output=json", "backups/six.qcow2").json
    t.equal(info["backing-filename"], "five.qcow2", "increments go on")
    t.qemu_img("compare", "backups/six.qcow2", "disk.qcow2")


main()
