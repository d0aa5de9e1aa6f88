"""blockdev-reopen: what changes while clients go on, what is refused, what QEMU says to it."""
import json
import os
import re

from qmp import Daemon
from vise_iotest import CODECS, KIB, MIB, case, cases, main, mixed_data
from writer import Writer

SIZE = 4 * MIB
BOTH = ("vise", "qemu")


def file(name, **more):
    return {"driver": "file", "filename": name, **more}


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name, "file": file(f"{name}.qcow2"), **more}


def state(daemon):
    """What a reopen may change, by node; nodes without a name of ours by their file."""
    found = {}
    for entry in daemon.execute("query-named-block-nodes", flat=True):
        name = entry["node-name"]
        key = f"{entry['drv']} {entry['image']['filename']}" if name.startswith("#") else name
        found[key] = (entry["ro"], entry["cache"]["direct"], entry["cache"]["no-flush"],
                      entry["detect_zeroes"], entry.get("backing_file"))
    return found


def export(t, daemon, name, **more):
    """Serves the node; its URI."""
    path = t.path("nbd.sock")
    daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": name, "name": "x",
                                        "writable": True, **more})
    return f"nbd+unix:///x?socket={path}"


def reopen(daemon, *options):
    daemon.execute("blockdev-reopen", options=list(options))


def refused(t, daemon, text, *options):
    """The reopen fails with that text and changes nothing."""
    before = state(daemon)
    error = daemon.qmp.fails("blockdev-reopen", options=list(options))
    t.check(re.search(text, error), f"{error!r} lacks {text!r}")
    t.equal(state(daemon), before, f"nodes after: {error}")


TOP = qcow2("top", backing=None)
STEPS = [
    [TOP],
    [qcow2("top")],
    [{**TOP, "backing": "other"}],
    [{**TOP, "backing": "nope"}],
    [{**TOP, "backing": "top"}],
    [{**TOP, "backing": file("base.qcow2")}],
    [{**TOP, "backing": "other", "read-only": True}],
    [{**TOP, "read-only": True}, {**qcow2("other"), "read-only": True}],
    [TOP, qcow2("other")],
    [{**TOP, "cache": {"direct": True}}],
    [{**TOP, "cache": {"direct": True}, "file": file("top.qcow2", cache={"direct": False})}],
    [{**TOP, "cache": {"no-flush": True}}],
    [{**TOP, "detect-zeroes": "on"}],
    [{**TOP, "detect-zeroes": "unmap"}],
    [{**TOP, "detect-zeroes": "unmap", "discard": "unmap"}],
    [{**TOP, "force-share": True, "read-only": True}],
    [{**TOP, "l2-cache-entry-size": 512}],
    [{**TOP, "l2-cache-entry-size": 511}],
    [{**TOP, "cache-size": 1000, "l2-cache-size": 65536}],
    [{**TOP, "overlap-check": "all"}],
    [{**TOP, "foo": 1}],
    [{**TOP, "driver": "raw"}],
    [{**TOP, "file": file("other.qcow2")}],
    [{**TOP, "file": file("top.qcow2", aio="threads")}],
    [{**TOP, "file": file("top.qcow2", locking="auto")}],
    [{**TOP, "file": "nope"}],
    [{"driver": "qcow2", "node-name": "top", "backing": None}],
    [{"driver": "qcow2", "file": file("top.qcow2"), "backing": None}],
    [TOP, {**TOP, "read-only": True}],
    [TOP, qcow2("nope")],
    [{**TOP, "read-only": True}, {**qcow2("other"), "l2-cache-entry-size": 511}],
    [{"driver": "raw", "node-name": "raw", "offset": 512, "file": file("raw", locking="off")}],
    [{"driver": "raw", "node-name": "raw", "file": file("raw")}],
    [{"driver": "raw", "node-name": "raw", "size": 1 << 40, "file": file("raw", locking="off")}],
    [{"driver": "null-co", "node-name": "null", "size": 1 << 20}],
    [{"driver": "null-co", "node-name": "null", "size": 65536, "read-only": True}],
    [{"driver": "null-co", "node-name": "null", "size": 65536}],
    [{"driver": "throttle", "node-name": "slow", "file": "null", "throttle-group": "b"}],
    [{"driver": "throttle", "node-name": "slow", "file": "null", "throttle-group": "c"}],
    [{"driver": "throttle", "node-name": "slow", "file": "other", "throttle-group": "a"}],
]


@case
def both_take_and_refuse_the_same(t):
    told = {}
    t.write("raw", bytes(MIB))
    for binary in BOTH:
        for name in ("base", "other"):
            t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", str(SIZE))
        t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
        daemon = Daemon(t, "--object", "throttle-group,id=a", "--object", "throttle-group,id=b",
                        binary=binary, name=binary)
        for options in (qcow2("top"), qcow2("other"),
                        {"driver": "raw", "node-name": "raw", "file": file("raw", locking="off")},
                        {"driver": "null-co", "node-name": "null", "size": 65536},
                        {"driver": "throttle", "node-name": "slow", "file": "null",
                         "throttle-group": "a"}):
            daemon.execute("blockdev-add", options)
        told[binary] = []
        for number, step in enumerate(STEPS):
            answer = daemon.qmp.raw(
                '{"execute": "blockdev-reopen", "arguments": {"options": %s}}\n'
                % json.dumps(step))
            told[binary].append((number, step, "return" in answer, state(daemon)))
        daemon.quit()
        t.sound("top.qcow2")
    for ours, theirs in zip(told["vise"], told["qemu"]):
        t.equal(ours, theirs, f"step {ours[0]}, {ours[1]}:")
    taken = sum(entry[2] for entry in told["vise"])
    t.check(12 <= taken <= len(STEPS) - 12, f"{taken} of {len(STEPS)} taken")


@case
def a_list_without_entries_changes_nothing(t):
    daemon = Daemon(t)
    reopen(daemon)
    t.check("expected: array" in daemon.qmp.fails("blockdev-reopen", options={}), "no list")
    t.check("missing" in daemon.qmp.fails("blockdev-reopen"), "no options")
    daemon.quit()


@case
def another_backing_image_shows_at_once(t):
    for name, value in (("base", 1), ("other", 2)):
        t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", str(SIZE))
        t.vise_io("-f", "qcow2", f"{name}.qcow2", commands=[f"write -P {value} 0 4M"])
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    daemon = Daemon(t)
    daemon.execute("blockdev-add", qcow2("top"))
    daemon.execute("blockdev-add", qcow2("other", **{"read-only": True}))
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "top"))

    def holds(value):
        t.check("65536/65536" in client.command_line(f"read -P {value} 1M 64k"), f"not {value}")

    holds(1)
    client.command_line("write -P 7 0 64k")
    reopen(daemon, qcow2("top", backing="other"))
    holds(2)
    t.check("base.qcow2" not in str(state(daemon)), "the old one is still open")
    reopen(daemon, qcow2("top", backing=None))
    holds(0)
    reopen(daemon, qcow2("top", backing="other"))
    holds(2)
    client.command_line("write -P 8 1M 64k")
    t.equal(client.end(), 0)
    daemon.quit()
    t.sound("top.qcow2")
    # What the header says is another matter.
    t.qemu_io("-f", "qcow2", "top.qcow2", commands=[
        "read -P 7 0 64k", "read -P 8 1M 64k", "read -P 1 2M 64k"])


@cases(codec=CODECS)
def a_filter_is_slipped_in_and_taken_out_under_a_writer(t, codec):
    disk = mixed_data(SIZE, 64 * KIB, 3)
    t.write("disk.raw", disk)
    t.vise_img("convert", "-O", "qcow2", "-o", f"compression_type={codec}", "disk.raw", "disk.qcow2")
    daemon = Daemon(t, "--object", "throttle-group,id=a")
    daemon.execute("blockdev-add", qcow2("disk", discard="unmap"))
    daemon.execute("blockdev-add", driver="throttle", node_name="top", throttle_group="a",
                   file="disk", discard="unmap")
    top = {"driver": "throttle", "node-name": "top", "throttle-group": "a", "discard": "unmap"}
    daemon.execute("blockdev-add", driver="compress", node_name="cmp", file="disk",
                   mode="all-writes", discard="unmap")
    writer = Writer(t, export(t, daemon, "top"), disk)
    for round in range(4):
        writer.wait(40)
        reopen(daemon, {**top, "file": "cmp" if round % 2 == 0 else "disk"},
               qcow2("disk", discard="unmap",
                     **{"l2-cache-entry-size": (512, 65536, 4096, 16384)[round]}))
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "expected.raw")
    checked = t.vise_img("check", "--output=json", "disk.qcow2").json
    t.check(checked.get("compressed-clusters", 0) > 0, checked)


def flags_of(daemon, path):
    """The flags with which the daemon holds the file open, one entry for each descriptor."""
    folder = f"/proc/{daemon.process.pid}"
    flags = []
    for number in os.listdir(f"{folder}/fd"):
        if os.path.realpath(f"{folder}/fd/{number}") == os.path.realpath(path):
            with open(f"{folder}/fdinfo/{number}", encoding="ascii") as text:
                flags.append(int(re.search(r"flags:\s*(\d+)", text.read())[1], 8))
    return flags


@case
def cache_modes_change_under_a_writer(t):
    disk = bytes(SIZE)
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    daemon = Daemon(t)
    daemon.execute("blockdev-add", qcow2("disk", discard="unmap"))
    writer = Writer(t, export(t, daemon, "disk"), disk)
    for round in range(6):
        writer.wait(20)
        direct = round % 2 == 0
        reopen(daemon, qcow2("disk", discard="unmap",
                             cache={"direct": direct, "no-flush": round in (1, 4)}))
        flags = flags_of(daemon, t.path("disk.qcow2"))
        t.equal([bool(flag & os.O_DIRECT) for flag in flags], [direct], f"round {round}")
    # The locks went along.
    t.check("lock" in t.vise_io("-f", "qcow2", "disk.qcow2", commands=["write 0 64k"], code=1).stderr,
            "a second writer")
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "expected.raw")


@case
def discards_pass_from_the_moment_they_may(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    daemon = Daemon(t)
    daemon.execute("blockdev-add", qcow2("disk"))
    client = t.hold("qemu-io", "-d", "unmap", "-f", "raw", export(t, daemon, "disk"))
    client.command_line("write -P 5 0 4M")
    client.command_line("discard 0 1M")
    client.command_line("flush")
    t.check("65536/65536" in client.command_line("read -P 5 0 64k"), "it was to be ignored")
    full = t.allocated("disk.qcow2")
    reopen(daemon, qcow2("disk", discard="unmap"))
    client.command_line("discard 0 1M")
    client.command_line("flush")
    t.check("65536/65536" in client.command_line("read -P 0 0 64k"), "it was to become zeros")
    t.check(t.allocated("disk.qcow2") < full - MIB // 2, "space was to be given back")
    reopen(daemon, qcow2("disk", **{"detect-zeroes": "unmap", "discard": "unmap"}))
    client.command_line("write -P 0 1M 1M")
    client.command_line("flush")
    t.check(t.allocated("disk.qcow2") < full - MIB - MIB // 2, "zeros were to be found")
    t.equal(client.end(), 0)
    daemon.quit()
    t.sound("disk.qcow2")


@case
def the_compress_filter_changes_how_it_writes(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    daemon = Daemon(t)
    daemon.execute("blockdev-add", qcow2("disk"))
    daemon.execute("blockdev-add", driver="compress", node_name="cmp", file="disk")
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "cmp"))

    def compressed(count):
        client.command_line("flush")
        found = t.vise_img("map", "-U", "--output=json", "disk.qcow2").json
        clusters = sum(entry["length"] for entry in found if entry.get("compressed"))
        t.equal(clusters // (64 * KIB), count, "compressed clusters")

    client.command_line("write -P 1 0 512k")
    compressed(8)
    client.command_line("write -P 2 0 128k")
    compressed(6)
    cmp = {"driver": "compress", "node-name": "cmp", "file": "disk"}
    reopen(daemon, {**cmp, "mode": "all-writes", "write-buffer-size": 0})
    client.command_line("write -P 3 0 64k")
    compressed(7)
    refused(t, daemon, "level", {**cmp, "level": 99})
    reopen(daemon, cmp)
    client.command_line("write -P 4 0 64k")
    compressed(6)
    t.equal(client.end(), 0)
    daemon.quit()
    t.qemu_io("-f", "qcow2", "disk.qcow2", commands=["read -P 4 0 64k", "read -P 2 64k 64k",
                                                     "read -P 1 128k 384k"])
    t.sound("disk.qcow2")


@case
def one_refusal_keeps_all_as_they_were(t):
    for name in ("a", "b", "small"):
        t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", str(SIZE if name != "small" else MIB))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 4M"])
    t.write("window", bytes([1]) * MIB + bytes([2]) * MIB)
    daemon = Daemon(t, "--object", "throttle-group,id=g")
    for options in (qcow2("a", discard="unmap"), qcow2("b"), qcow2("small"),
                    {"driver": "throttle", "node-name": "top", "throttle-group": "g", "file": "a"},
                    {"driver": "raw", "node-name": "raw", "file": file("window"), "size": MIB},
                    {"driver": "compress", "node-name": "cmp", "file": "b"},
                    {"driver": "null-co", "node-name": "null", "size": SIZE}):
        daemon.execute("blockdev-add", options)
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "top"))
    good = [qcow2("b", **{"read-only": True}), qcow2("a", **{"detect-zeroes": "on"})]
    top = {"driver": "throttle", "node-name": "top", "throttle-group": "g", "file": "a"}
    # The export writes; cycles; a size that is in use; what cannot be compressed to; a bad window.
    for text, last in (("permission|read-only", [{**top, "read-only": True}]),
                       ("permission|read-only", [qcow2("a", **{"read-only": True})]),
                       ("cycle", [qcow2("a", backing="top")]),
                       ("size of node 'top'", [{**top, "file": "small"}]),
                       ("compress", [{"driver": "compress", "node-name": "cmp", "file": "null"}]),
                       ("'offset'", [{"driver": "raw", "node-name": "raw", "offset": 8 * MIB,
                                      "file": file("window")}]),
                       ("no throttle group 'h'", [{**top, "throttle-group": "h"}])):
        refused(t, daemon, text, *good, *last)
        refused(t, daemon, text, *last, good[0])
        told = client.command_line("write -P 3 0 64k")
        t.check("65536/65536" in told, f"the export goes on after {last}: {told}")
    t.equal(client.end(), 0)
    reopen(daemon, *good, {"driver": "raw", "node-name": "raw", "offset": MIB, "size": MIB,
                           "file": file("window")})
    found = state(daemon)
    t.equal((found["b"][0], found["a"][3]), (True, "on"))
    daemon.quit()
    t.sound("a.qcow2")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["read -P 3 0 64k", "read -P 1 64k 4032k"])


@cases(before=["all", "cached"], after=["all", "cached"])
def a_refusal_keeps_the_checks_for_overlaps(t, before, after):
    """An entry of the disk points to an L2 table of snapshot one: only the check tells."""
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    for name in ("one", "two", None):
        t.vise_io("-f", "qcow2", "disk.qcow2", commands=["write -q -P 1 0 64k"])
        if name:
            t.vise_img("snapshot", "-c", name, "disk.qcow2")
    data = t.read("disk.qcow2")
    def u64(offset):
        return int.from_bytes(data[offset:offset + 8], "big")
    table = u64(u64(u64(64))) % (1 << 56)  # where the L1 table of the first snapshot points to
    t.patch("disk.qcow2", u64(u64(40)) % (1 << 56) + 5 * 8, (table | 1 << 63).to_bytes(8, "big"))
    t.vise_img("create", "-f", "qcow2", "other.qcow2", str(SIZE))
    daemon = Daemon(t)
    for options in (qcow2("disk", **{"overlap-check": before}), qcow2("other")):
        daemon.execute("blockdev-add", options)
    refused(t, daemon, "511", qcow2("disk", **{"overlap-check": after}),
            qcow2("other", **{"l2-cache-entry-size": 511}))
    # Where the tables of snapshots are is found out anew.
    daemon.execute("blockdev-snapshot-delete-internal-sync", device="disk", name="two")
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk"))
    told = client.command_line("write -P 2 320k 64k")
    t.equal("failed" in told, before == "all", told)
    client.end()
    daemon.quit()
    kept = t.read("disk.qcow2")[table:table + 64 * KIB] == data[table:table + 64 * KIB]
    t.equal(kept, before == "all", "the snapshot's table is as it was")


@case
def bitmaps_are_stored_when_their_node_becomes_read_only(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    qmp.execute("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk"))
    client.command_line("write 0 128k")
    refused(t, daemon, "permission|read-only", qcow2("disk", **{"read-only": True}))
    t.equal(client.end(), 0)
    qmp.execute("block-export-del", id="e", mode="hard")
    qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    reopen(daemon, qcow2("disk", **{"read-only": True}))
    info = t.qemu_img("info", "-U", "--output=json", "disk.qcow2").json
    flags = info["format-specific"]["data"]["bitmaps"][0]["flags"]
    t.equal(flags, ["auto"], "in-use is gone")
    reopen(daemon, qcow2("disk"))
    entry = next(entry for entry in qmp.execute("query-named-block-nodes")
                 if entry["node-name"] == "disk")
    t.equal(entry["dirty-bitmaps"][0]["count"], 128 * KIB)
    daemon.quit()
    t.sound("disk.qcow2")


@case
def nodes_of_jobs_are_left_alone(t):
    t.vise_img("create", "-f", "qcow2", "base.qcow2", str(SIZE))
    t.vise_io("-f", "qcow2", "base.qcow2", commands=["write -P 1 0 4M"])
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("top"))
    qmp.execute("block-stream", job_id="j", device="top", speed=1, filter_node_name="filter")
    refused(t, daemon, "busy|job", qcow2("top", backing=None))
    refused(t, daemon, "job", {"driver": "copy-on-read", "node-name": "filter", "file": "top"})
    qmp.execute("job-cancel", id="j")
    qmp.wait_job("j")
    reopen(daemon, qcow2("top", backing=None))
    daemon.quit()


main()
