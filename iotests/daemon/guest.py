"""A guest writes to an NBD export of vise-storage-daemon while jobs run and the graph changes."""
import random
import threading

from qmp import Daemon
from vise_iotest import CODECS, KIB, MIB, Skip, case, cases, main, mixed_data

SIZE = 8 * MIB
FORMATS = ["plain", *CODECS]


def node(name, filename=None, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": filename or f"{name}.qcow2"}, **more}


class Guest(threading.Thread):
    """Writes through the export until told to stop; `disk` follows."""

    def __init__(self, t, disk, seed):
        super().__init__()
        self.t, self.disk, self.random = t, disk, random.Random(seed)
        self.ends, self.failure, self.rounds = False, None, 0
        self.start()

    def run(self):
        try:
            while not self.ends:
                commands = []
                for _ in range(20):
                    length = self.random.randrange(1, 200) * 512
                    offset = self.random.randrange((SIZE - length) // 512) * 512
                    value = self.random.randrange(256)
                    commands.append(f"write -P {value} {offset} {length}")
                    self.disk[offset:offset + length] = bytes([value]) * length
                self.t.qemu_io("-f", "raw", f"nbd+unix:///disk?socket={self.t.path('nbd.sock')}",
                               commands=[*commands, "flush"])
                self.rounds += 1
        except Exception as error:  # noqa: BLE001: told by the case
            self.failure = error

    def stop(self):
        self.ends = True
        self.join()
        if self.failure:
            raise self.failure
        self.t.check(self.rounds > 0, "the guest has not written")


def begin(t, way):
    """A disk below an export named `disk`, writable; returns daemon and content."""
    codec = "zlib" if way == "plain" else way
    compress = [] if way == "plain" else ["-c"]
    data = mixed_data(SIZE, 64 * KIB, 5)
    t.write("disk.raw", data)
    t.vise_img("convert", *compress, "-O", "qcow2", "-o", f"compression_type={codec}", "disk.raw",
               "base.qcow2")
    t.vise_img("create", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2",
               "-o", f"compression_type={codec}", "top.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    if {"name": "nbd-server-start"} not in qmp.execute("query-commands"):
        raise Skip("this daemon serves no NBD")
    qmp.execute("blockdev-add", node("top"))
    device = "top"
    if way != "plain":
        qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="top")
        device = "cmp"
    qmp.execute("nbd-server-start",
                addr={"type": "unix", "data": {"path": str(t.path("nbd.sock"))}})
    qmp.execute("block-export-add", type="nbd", id="export", node_name=device, name="disk",
                writable=True)
    return daemon, device, bytearray(data)


@cases(way=FORMATS)
def a_chain_streams_under_a_guest_that_writes(t, way):
    daemon, device, disk = begin(t, way)
    guest = Guest(t, disk, 1)
    daemon.execute("block-stream", device=device, job_id="job", speed=8 * MIB)
    daemon.qmp.wait_job("job")
    guest.stop()
    t.equal(daemon.execute("query-block-exports")[0]["node-name"], device)
    daemon.quit()
    t.write("disk.raw", bytes(disk))
    t.reads_as("top.qcow2", "disk.raw")
    t.sound("top.qcow2")
    t.check("backing-filename" not in t.qemu_img("info", "--output=json", "top.qcow2").json, "base")


@cases(way=FORMATS)
def a_backup_shows_one_instant_and_the_increments_the_next_ones(t, way):
    daemon, device, disk = begin(t, way)
    qmp = daemon.qmp
    for number in range(3):
        source = [] if number == 0 else ["-F", "qcow2", "-b", f"copy{number - 1}.qcow2"]
        codec = "zlib" if way == "plain" else way
        t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", *source,
                   f"copy{number}.qcow2", SIZE)
    for number in range(3):
        qmp.execute("blockdev-add", node(f"copy{number}", backing=None))
    instants = []
    for number in range(3):
        instants.append(bytes(disk))  # nobody writes at this moment
        backup = {"job-id": "job", "device": device, "target": f"copy{number}",
                  "compress": way != "plain", "speed": 16 * MIB}
        if number == 0:
            actions = [{"type": "block-dirty-bitmap-add", "data": {"node": device, "name": "b"}},
                       {"type": "blockdev-backup", "data": {**backup, "sync": "full"}}]
            qmp.execute("transaction", actions=actions)
        else:
            qmp.execute("blockdev-backup", {**backup, "sync": "incremental", "bitmap": "b"})
        guest = Guest(t, disk, number)
        qmp.wait_job("job")
        guest.stop()
    daemon.quit()
    for number, instant in enumerate(instants):
        t.write("instant.raw", instant)
        t.reads_as(f"copy{number}.qcow2", "instant.raw")
        t.sound(f"copy{number}.qcow2")
    t.write("disk.raw", bytes(disk))
    t.reads_as("top.qcow2", "disk.raw")


@cases(way=FORMATS, mode=["background", "write-blocking"])
def an_export_follows_a_mirror_to_its_target(t, way, mode):
    daemon, device, disk = begin(t, way)
    qmp = daemon.qmp
    codec = "zlib" if way == "plain" else way
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "copy.qcow2", SIZE)
    qmp.execute("blockdev-add", node("copy"))
    target = "copy"
    if way != "plain":
        qmp.execute("blockdev-add", driver="compress", node_name="copy-cmp", file="copy")
        target = "copy-cmp"
    guest = Guest(t, disk, 3)
    qmp.execute("blockdev-mirror", job_id="job", device=device, target=target, sync="full",
                copy_mode=mode)
    qmp.wait_event("BLOCK_JOB_READY", device="job")
    qmp.execute("job-complete", id="job")
    qmp.wait_job("job")
    t.equal(qmp.execute("query-block-exports")[0]["node-name"], target)
    guest.stop()
    daemon.quit()
    t.write("disk.raw", bytes(disk))
    t.reads_as("copy.qcow2", "disk.raw")
    t.sound("copy.qcow2")
    checked = t.vise_img("check", "--output=json", "copy.qcow2").json
    t.equal(checked.get("compressed-clusters", 0) > 0, way != "plain")


@cases(way=FORMATS)
def an_image_in_between_is_committed_under_a_guest(t, way):
    daemon, device, disk = begin(t, way)
    qmp = daemon.qmp
    guest = Guest(t, disk, 6)
    qmp.execute("blockdev-snapshot-sync", node_name=device, snapshot_node_name="over",
                snapshot_file="over.qcow2")
    files = {entry["file"]: entry["node-name"] for entry in qmp.execute("query-named-block-nodes")
             if entry["drv"] == "qcow2"}
    qmp.execute("block-commit", job_id="job", device="over", top_node=device,
                base_node=files["base.qcow2"], backing_file="base.qcow2", speed=4 * MIB)
    qmp.wait_job("job")
    guest.stop()
    daemon.quit()
    t.write("disk.raw", bytes(disk))
    t.reads_as("over.qcow2", "disk.raw")
    t.sound("over.qcow2")
    t.sound("base.qcow2")
    t.equal(t.qemu_img("info", "--output=json", "over.qcow2").json["backing-filename"],
            "base.qcow2")


@cases(way=FORMATS)
def an_active_image_is_committed_under_a_guest(t, way):
    daemon, device, disk = begin(t, way)
    qmp = daemon.qmp
    nodes = {entry["file"]: entry["node-name"] for entry in qmp.execute("query-named-block-nodes")
             if entry["drv"] == "qcow2"}
    guest = Guest(t, disk, 4)
    qmp.execute("block-commit", job_id="job", device=device, base_node=nodes["base.qcow2"])
    qmp.wait_event("BLOCK_JOB_READY", device="job")
    qmp.execute("job-complete", id="job")
    qmp.wait_job("job")
    guest.stop()
    daemon.quit()
    t.write("disk.raw", bytes(disk))
    t.reads_as("base.qcow2", "disk.raw")
    t.sound("base.qcow2")


@case
def a_snapshot_moves_the_export_to_the_overlay(t):
    daemon, device, disk = begin(t, "zstd")
    guest = Guest(t, disk, 5)
    daemon.execute("blockdev-snapshot-sync", node_name=device, snapshot_node_name="over",
                   snapshot_file="over.qcow2")
    t.equal(daemon.execute("query-block-exports")[0]["node-name"], "over")
    guest.stop()
    daemon.quit()
    t.write("disk.raw", bytes(disk))
    t.vise_img("compare", "-f", "raw", "disk.raw", "-F", "qcow2", "over.qcow2")


main()
