"""Dirty bitmaps, snapshots, sizes and transactions over QMP; answers compared with QEMU's."""
from qmp import Daemon
from vise_iotest import KIB, MIB, case, cases, main

SIZE = 8 * MIB
BOTH = ("vise", "qemu")


def node(name, filename=None, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": filename or f"{name}.qcow2"}, **more}


def bitmaps(daemon, name="disk"):
    nodes = daemon.execute("query-named-block-nodes", flat=True)
    entry = next(entry for entry in nodes if entry["node-name"] == name)
    # A newer QEMU leaves "inconsistent" out where 7.2 has it or not; names tell enough.
    return {bitmap.get("name"): (bitmap["count"], bitmap["granularity"], bitmap["recording"],
                                 bitmap["persistent"], bitmap["busy"])
            for bitmap in entry.get("dirty-bitmaps", [])}


def marked(t, image, *ranges):
    """Marks ranges of a bitmap `b` that is stored in the image."""
    t.qemu_img("bitmap", "--add", "-g", "64k", image, "b")
    t.qemu_io("-f", "qcow2", image,
              commands=[f"write -P 7 {start} {length}" for start, length in ranges])


@case
def bitmap_commands_do_what_those_of_qemu_do(t):
    seen = {}
    for binary in BOTH:
        t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
        marked(t, "disk.qcow2", (0, 64 * KIB), (MIB, 300 * KIB), (SIZE - 512, 512))
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", node("disk"))
        log = [bitmaps(daemon)]

        def sha(name):
            return qmp.execute("x-debug-block-dirty-bitmap-sha256", node="disk",
                               name=name)["sha256"]

        log.append(sha("b"))
        qmp.execute("block-dirty-bitmap-add", node="disk", name="c", granularity=4096,
                    persistent=True)
        qmp.execute("block-dirty-bitmap-add", node="disk", name="d", disabled=True)
        log.append(bitmaps(daemon))
        qmp.execute("block-dirty-bitmap-merge", node="disk", target="c",
                    bitmaps=["b", {"node": "disk", "name": "d"}])
        log += [sha("c"), bitmaps(daemon)]
        qmp.execute("block-dirty-bitmap-clear", node="disk", name="b")
        qmp.execute("block-dirty-bitmap-disable", node="disk", name="b")
        qmp.execute("block-dirty-bitmap-enable", node="disk", name="d")
        log += [sha("b"), bitmaps(daemon)]
        qmp.execute("block-dirty-bitmap-remove", node="disk", name="b")
        log.append(bitmaps(daemon))
        for name, arguments in [
                ("block-dirty-bitmap-add", {"name": "c"}), ("block-dirty-bitmap-add", {"name": ""}),
                ("block-dirty-bitmap-add", {"name": "x", "granularity": 100}),
                ("block-dirty-bitmap-remove", {"name": "nope"}),
                ("block-dirty-bitmap-merge", {"target": "c", "bitmaps": ["nope"]})]:
            qmp.fails(name, {"node": "disk", **arguments})
        log.append(bitmaps(daemon))
        daemon.quit()
        info = t.qemu_img("info", "--output=json", "disk.qcow2").json
        log.append(info["format-specific"]["data"]["bitmaps"])
        seen[binary] = log
    for number, (ours, theirs) in enumerate(zip(*seen.values())):
        t.equal(ours, theirs, f"answer {number}")


@case
def a_transaction_happens_as_a_whole_or_not_at_all(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    t.vise_img("create", "-f", "qcow2", "copy.qcow2", str(SIZE))
    marked(t, "disk.qcow2", (0, 256 * KIB))
    seen = {}
    for binary in BOTH:
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", node("disk"))
        qmp.execute("blockdev-add", node("copy"))
        before = (bitmaps(daemon),
                  qmp.execute("x-debug-block-dirty-bitmap-sha256", node="disk", name="b"),
                  [entry["node-name"] for entry in qmp.execute("query-named-block-nodes")])

        def action(kind, **data):
            return {"type": kind, "data": {key.replace("_", "-"): value
                                           for key, value in data.items()}}

        everything = [
            action("block-dirty-bitmap-add", node="disk", name="new"),
            action("block-dirty-bitmap-clear", node="disk", name="b"),
            action("block-dirty-bitmap-disable", node="disk", name="b"),
            action("block-dirty-bitmap-merge", node="disk", target="new", bitmaps=["b"]),
            action("block-dirty-bitmap-remove", node="disk", name="b"),
            action("blockdev-snapshot-sync", node_name="disk", snapshot_node_name="over",
                   snapshot_file=f"{binary}-over.qcow2", format="qcow2"),
            action("blockdev-backup", job_id="job", device="copy", target="unused", sync="full"),
        ]
        qmp.execute("blockdev-add", driver="null-co", node_name="unused", size=SIZE)
        before[2].insert(0, "unused")
        for count in range(len(everything) + 1):
            error = qmp.fails("transaction", actions=[*everything[:count], action("abort")])
            t.equal(error, "GenericError: Transaction aborted using Abort action")
            after = (bitmaps(daemon),
                     qmp.execute("x-debug-block-dirty-bitmap-sha256", node="disk", name="b"),
                     [entry["node-name"] for entry in qmp.execute("query-named-block-nodes")])
            t.equal(after, before, f"{binary}: after {count} actions and a failure")
            t.equal(qmp.execute("query-jobs"), [])
        qmp.fails("transaction", actions=[everything[0]],
                  properties={"completion-mode": "grouped"})
        t.equal(qmp.execute("transaction", actions=[]), {})
        qmp.execute("transaction", actions=everything[:2])
        seen[binary] = bitmaps(daemon)
        qmp.execute("transaction", actions=[
            action("block-dirty-bitmap-remove", node="disk", name="new")])
        daemon.quit()
        marked_again = t.qemu_img("bitmap", "--remove", "disk.qcow2", "b", code=None)
        t.check(marked_again.code == 0, marked_again)
        marked(t, "disk.qcow2", (0, 256 * KIB))
    t.equal(seen["vise"], seen["qemu"])


@cases(how=["blockdev-snapshot", "blockdev-snapshot-sync"])
def an_overlay_takes_the_place_of_its_node(t, how):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    t.vise_io("-f", "qcow2", "disk.qcow2", commands=["write -P 7 0 1M"])
    if how == "blockdev-snapshot":
        t.vise_img("create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("disk"))
    qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="disk")
    if how == "blockdev-snapshot":
        qmp.execute("blockdev-add", node("over", backing=None))
        qmp.fails(how, node="over", overlay="over")
        qmp.execute(how, node="disk", overlay="over")
        t.check("in use" in qmp.fails(how, node="disk", overlay="over"), "twice")
    else:
        qmp.execute(how, node_name="disk", snapshot_node_name="over",
                    snapshot_file="over.qcow2")
    nodes = {entry["node-name"]: entry for entry in qmp.execute("query-named-block-nodes")}
    t.check(nodes["over"]["backing_file"].endswith("disk.qcow2"), nodes["over"])
    t.equal(nodes["cmp"]["backing_file_depth"], 2)
    t.check(nodes["disk"]["ro"], "the node below is read-only now")
    t.check("is used as backing" in qmp.fails("blockdev-del", node_name="disk"), "in use")
    daemon.quit()
    t.sound("over.qcow2")
    t.qemu_io("-f", "qcow2", "over.qcow2", commands=["read -P 7 0 1M"])


@case
def internal_snapshots_come_and_go(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("disk"))
    qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="disk")
    qmp.execute("blockdev-snapshot-internal-sync", device="cmp", name="one")
    qmp.fails("blockdev-snapshot-internal-sync", device="cmp", name="one")
    qmp.fails("blockdev-snapshot-internal-sync", device="cmp", name="")
    qmp.execute("blockdev-snapshot-internal-sync", device="disk", name="two")
    error = qmp.fails("blockdev-snapshot-delete-internal-sync", device="disk", id="1", name="two")
    t.check("does not exist" in error, error)
    gone = qmp.execute("blockdev-snapshot-delete-internal-sync", device="disk", name="one")
    t.equal((gone["id"], gone["name"], gone["vm-state-size"]), ("1", "one", 0))
    daemon.quit()
    snapshots = t.qemu_img("info", "--output=json", "disk.qcow2").json["snapshots"]
    t.equal([snapshot["name"] for snapshot in snapshots], ["two"])
    t.sound("disk.qcow2")


@case
def sizes_and_backing_names_change(t):
    t.vise_img("create", "-f", "qcow2", "base.qcow2", str(SIZE))
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("disk"))
    for arguments in ({"size": SIZE}, {"node-name": "disk", "device": "disk", "size": SIZE},
                      {"node-name": "disk", "size": -1}, {"node-name": "disk", "size": 1000},
                      {"node-name": "nope", "size": SIZE}):
        qmp.fails("block_resize", arguments)
    qmp.execute("block_resize", node_name="disk", size=2 * SIZE)
    nodes = {entry["node-name"]: entry for entry in qmp.execute("query-named-block-nodes")}
    t.equal(nodes["disk"]["image"]["virtual-size"], 2 * SIZE)
    qmp.execute("change-backing-file", device="disk", image_node_name="disk",
                backing_file="other.qcow2")
    qmp.fails("change-backing-file", device="disk", image_node_name="nope", backing_file="x")
    qmp.fails("blockdev-set-active", active=False)
    qmp.execute("block-set-write-threshold", node_name="disk", write_threshold=4096)
    nodes = {entry["node-name"]: entry for entry in qmp.execute("query-named-block-nodes")}
    t.equal(nodes["disk"]["write_threshold"], 4096)
    daemon.quit()
    info = t.qemu_img("info", "--output=json", "disk.qcow2").json
    t.equal((info["backing-filename"], info["virtual-size"]), ("other.qcow2", 2 * SIZE))


@case
def a_write_past_the_threshold_is_told_once(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", str(SIZE))
    t.vise_img("create", "-f", "qcow2", "source.qcow2", str(SIZE))
    t.vise_io("-f", "qcow2", "source.qcow2", commands=["write -P 1 0 8M"])
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("disk"))
    qmp.execute("blockdev-add", node("source"))
    qmp.execute("block-set-write-threshold", node_name="disk", write_threshold=5 * MIB)
    qmp.execute("blockdev-backup", job_id="job", device="source", target="disk", sync="full")
    qmp.wait_job("job")
    told = [event["data"] for event in qmp.events if event["event"] == "BLOCK_WRITE_THRESHOLD"]
    t.equal(len(told), 1, "number of events")
    t.equal((told[0]["node-name"], told[0]["write-threshold"]), ("disk", 5 * MIB))
    t.check(0 < told[0]["amount-exceeded"] <= MIB, told)
    daemon.quit()


main()
