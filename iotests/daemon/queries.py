"""What queries and events of nodes, bitmaps and exports say: compared with QEMU, value by value."""
import json
import re
import struct

from qmp import Daemon
from vise_iotest import KIB, MIB, case, cases, main

SIZE = 8 * MIB
BOTH = ("vise", "qemu")


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name,
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


def export(t, daemon, name, number=0):
    path = t.path(f"nbd{number}.sock")
    path.unlink(missing_ok=True)
    daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": name, "name": "x",
                                        "writable": True})
    return f"nbd+unix:///x?socket={path}"


def comparable(value):
    """Without made-up names; json: names as what they hold."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items() if key != "active"}
    if isinstance(value, list):
        return [comparable(entry) for entry in value]
    if isinstance(value, str) and value.startswith("json:"):
        return json.loads(value[5:])
    if isinstance(value, str) and re.fullmatch(r"#block\d+", value):
        return "#block"
    return value


def by_name(entries):
    found = comparable(entries)
    return sorted(found, key=lambda entry: (entry["node-name"], entry["drv"], str(entry["file"])))


@cases(flat=[True, False])
def all_nodes_are_described_alike(t, flat):
    t.vise_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on,compression_type=zstd", "base.qcow2",
               str(SIZE))
    t.vise_io("-f", "qcow2", "base.qcow2", commands=["write -P 1 0 1M"])
    t.vise_img("snapshot", "-c", "one", "base.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "-o", "extended_l2=on",
               "top.qcow2")
    t.vise_img("create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "old.qcow2", str(SIZE))
    t.vise_img("bitmap", "--add", "top.qcow2", "stored")
    t.write("plain", bytes(MIB))
    told, top = {}, t.read("top.qcow2")
    for binary in BOTH:
        t.write("top.qcow2", top)  # both change the bitmap
        daemon = Daemon(t, "--object", "throttle-group,id=g", binary=binary, name=binary)
        for options in (
                qcow2("top"),
                qcow2("old", **{"read-only": True, "cache": {"direct": True, "no-flush": True}}),
                {"driver": "file", "node-name": "plain-file", "filename": "plain",
                 "detect-zeroes": "on"},
                {"driver": "raw", "node-name": "window", "offset": 512, "size": 4096,
                 "file": "plain-file"},
                {"driver": "null-co", "node-name": "null", "size": 65536, "read-zeroes": True},
                {"driver": "throttle", "node-name": "slow", "throttle-group": "g", "file": "top",
                 "discard": "unmap", "detect-zeroes": "unmap"},
                {"driver": "copy-on-read", "node-name": "cor", "file": "slow"},
                {"driver": "raw", "node-name": "above-null", "file": "null"}):
            daemon.execute("blockdev-add", options)
        daemon.execute("block-dirty-bitmap-add", node="top", name="later", granularity=512)
        daemon.execute("block-dirty-bitmap-disable", node="top", name="stored")
        daemon.execute("block-set-write-threshold", node_name="null", write_threshold=4096)
        told[binary] = by_name(daemon.execute("query-named-block-nodes", flat=flat))
        daemon.quit()
    t.equal([entry["node-name"] for entry in told["vise"]],
            [entry["node-name"] for entry in told["qemu"]])
    for ours, theirs in zip(told["vise"], told["qemu"]):
        t.equal(sorted(ours), sorted(theirs), f"members of {ours['node-name']}")
        if ours["drv"] == "file":  # as by QEMU 10
            t.equal(ours["image"].pop("format-specific"), {"type": "file", "data": {}})
        for key, value in theirs.items():
            t.equal(ours[key], value, f"{key} of {ours['node-name']} ({ours['drv']})")


@case
def bitmaps_have_the_checksums_that_qemu_tells(t):
    size = SIZE - 3 * 512  # no multiple of any granularity but the smallest
    told = {}
    for binary in BOTH:
        t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(size))
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", qcow2("disk"))
        sizes = [512 << shift for shift in range(0, 15, 2)] + [1 << 31]
        for granularity in sizes:
            qmp.execute("block-dirty-bitmap-add", node="disk", name=f"b{granularity}",
                        granularity=granularity)

        def sums(qmp=qmp, sizes=sizes):
            return [qmp.execute("x-debug-block-dirty-bitmap-sha256", node="disk",
                                name=f"b{granularity}")["sha256"] for granularity in sizes]

        found = [sums()]
        client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk", binary))
        for command in ("write 0 512", "write 1M 192k", "write -z 3M 1M", f"write {size - 512} 512",
                        "write 4097k 33k"):
            client.command_line(command)
            found.append(sums())
        t.equal(client.end(), 0)
        qmp.execute("block-dirty-bitmap-add", node="disk", name="merged", granularity=4096)
        qmp.execute("block-dirty-bitmap-merge", node="disk", target="merged", bitmaps=["b512"])
        qmp.execute("block-dirty-bitmap-clear", node="disk", name="b512")
        found.append(sums())
        found.append(qmp.execute("x-debug-block-dirty-bitmap-sha256", node="disk", name="merged"))
        told[binary] = found
        daemon.quit()
    t.equal(told["vise"], told["qemu"])
    t.check(len(set(map(str, told["vise"]))) == len(told["vise"]), "a write that marked nothing")


@case
def thresholds_are_told_as_by_qemu(t):
    told = {}
    for binary in BOTH:
        t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", qcow2("disk"))
        client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk", binary))
        told[binary] = []
        for threshold, commands in ((0, ["write 7M 64k"]), (MIB, ["write 0 1M", "write 512k 600k"]),
                                    (MIB, ["write 1020k 8k", "write 2M 64k"]),
                                    (4096, ["write -z 0 4k", "write -z 64k 64k"]),
                                    (MIB, ["read 0 8M", "write 1M 512"])):
            qmp.execute("block-set-write-threshold", node_name="disk", write_threshold=threshold)
            for command in commands:
                client.command_line(command)
            left = next(entry["write_threshold"] for entry in qmp.execute("query-named-block-nodes")
                        if entry["node-name"] == "disk")
            told[binary].append((left, [event["data"] for event in qmp.events
                                        if event["event"] == "BLOCK_WRITE_THRESHOLD"]))
            qmp.events.clear()
        t.equal(client.end(), 0)
        for wrong in ({"node-name": "nope", "write-threshold": 1}, {"node-name": "disk"}):
            told[binary].append(qmp.fails("block-set-write-threshold", wrong).partition(":")[0])
        daemon.quit()
    t.equal(told["vise"], told["qemu"])
    t.equal(sum(len(entry[1]) for entry in told["vise"] if isinstance(entry, tuple)), 4)


def u64(data, offset):
    return struct.unpack(">Q", data[offset:offset + 8])[0]


def spoil(t, how):
    """An image whose metadata contradict themselves; the command that finds out."""
    t.qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
    t.qemu_io("-f", "qcow2", "disk.qcow2", commands=["write -q -P 1 0 128k"])
    data = t.read("disk.qcow2")
    table = u64(data, u64(data, 40)) & ((1 << 56) - 512)
    if how == "overlap":
        block = u64(data, u64(data, 48))
        t.patch("disk.qcow2", block + 2 * (table // (64 * KIB)), b"\0\0")
        return "write -P 7 128k 64k"
    t.patch("disk.qcow2", table, struct.pack(">Q", (u64(data, table) | 512)))
    return "read 0 64k"


@cases(how=["overlap", "unaligned"])
def corruption_is_told_as_by_qemu(t, how):
    told = {}
    for binary in BOTH:
        command = spoil(t, how)
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", qcow2("disk"))
        client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk", binary))
        t.check("failed" in client.command_line(command), f"{binary}: {command}")
        t.check("failed" in client.command_line(command), f"{binary}: {command} again")
        event = qmp.wait_event("BLOCK_IMAGE_CORRUPTED")["data"]
        if how == "unaligned":
            t.check("unaligned" in event["msg"] or "aligned" in event["msg"], event)
            event.pop("msg")
        if binary == "vise":  # which QEMU refuses from then on
            qmp.execute("query-named-block-nodes")
        event["more"] = [other for other in qmp.events if other["event"] == "BLOCK_IMAGE_CORRUPTED"]
        client.end()
        daemon.quit()
        info = t.qemu_img("info", "--output=json", "disk.qcow2").json
        told[binary] = (event, info["format-specific"]["data"]["corrupt"])
    t.equal(told["vise"], told["qemu"])


@case
def exports_are_listed_as_by_qemu(t):
    told = {}
    for binary in BOTH:
        for name in ("disk", "other"):
            t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", str(SIZE))
        t.vise_img("create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2")
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        told[binary] = [qmp.execute("query-block-exports")]
        for name in ("disk", "other"):
            qmp.execute("blockdev-add", qcow2(name))
        qmp.execute("blockdev-add", qcow2("over", backing=None))
        client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk", binary))
        for number, name in enumerate(("other", "disk", "other")):
            qmp.execute("block-export-add", {"type": "nbd", "id": f"e{number}", "node-name": name,
                                             "name": f"n{number}"})
        told[binary].append(qmp.execute("query-block-exports"))
        qmp.execute("blockdev-snapshot", node="disk", overlay="over")
        told[binary].append(qmp.execute("query-block-exports"))
        told[binary].append(qmp.fails("block-export-del", id="e"))
        qmp.execute("block-export-del", id="e1")
        qmp.wait_event("BLOCK_EXPORT_DELETED", id="e1")
        told[binary].append(qmp.execute("query-block-exports"))
        t.equal(client.end(), 0)
        daemon.quit()
    t.equal(told["vise"], told["qemu"])


main()
