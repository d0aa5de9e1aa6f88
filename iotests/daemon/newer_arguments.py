"""Arguments that the QEMU at hand does not know yet, since they are of versions 8 to 10."""
import random

from qmp import Daemon
from vise_iotest import KIB, MIB, case, cases, main, mixed_data

SIZE = 2 * MIB


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name,
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


@cases(job=["stream", "commit"], mask=[None, False, True])
def the_format_of_a_backing_file_may_hide_a_protocol(t, job, mask):
    t.write("base.raw", mixed_data(SIZE, 64 * KIB, 3))
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -P 7 128k 64k"])
    t.vise_img("convert", "-O", "raw", "top.qcow2", "disk.raw")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", driver="file", node_name="base", filename="base.raw")
    qmp.execute("blockdev-add", qcow2("mid", backing="base"))
    qmp.execute("blockdev-add", qcow2("top", backing="mid"))
    more = {} if mask is None else {"backing-mask-protocol": mask}
    if job == "stream":
        qmp.execute("block-stream", {"job-id": "j", "device": "top", "base-node": "base", **more})
    else:
        qmp.execute("block-commit", {"job-id": "j", "device": "top", "top-node": "mid",
                                     "base-node": "base", **more})
    qmp.wait_job("j")
    daemon.quit()
    info = t.vise_img("info", "--output=json", "top.qcow2").json
    t.equal((info["backing-filename"], info["backing-filename-format"]),
            ("base.raw", "raw" if mask else "file"))
    t.reads_as("top.qcow2", "disk.raw")
    if mask:
        t.qemu_img("compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "disk.raw")


EIO = 5


def backup_images(t, size=4 * MIB):
    """source, without zeros, and an empty target; returns what the source holds."""
    disk = random.Random(5).randbytes(size)
    t.write("disk.raw", disk)
    t.vise_img("convert", "-O", "qcow2", "disk.raw", "source.qcow2")
    t.vise_img("create", "-f", "qcow2", "target.qcow2", str(size))
    return disk


def add_nodes(qmp, error=None, **source):
    """`error`: of every write of data to the target."""
    qmp.execute("blockdev-add", qcow2("source", discard="unmap", **source))
    target = qcow2("target")
    if error:
        target["file"] = {"driver": "blkdebug", "image": target["file"],
                          "inject-error": [{"event": "write_aio", "errno": error}]}
    qmp.execute("blockdev-add", target)


def guest_writes(t, qmp, node, *commands):
    qmp.execute("nbd-server-start",
                addr={"type": "unix", "data": {"path": str(t.path("nbd.sock"))}})
    qmp.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": node, "name": "disk",
                                     "writable": True, "allow-inactive": True})
    t.vise_io("-f", "raw", f"nbd+unix:///disk?socket={t.path('nbd.sock')}", commands=commands)
    qmp.execute("block-export-del", id="e")
    qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")


@cases(most=[None, 0, 64 * KIB, 200 * KIB, 4 * MIB], least=[None, 0, 4 * KIB, 128 * KIB, MIB])
def a_backup_copies_as_much_at_once_as_it_is_told(t, most, least):
    backup_images(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    add_nodes(qmp)
    perf = {name: value for name, value in [("max-chunk", most), ("min-cluster-size", least)]
            if value is not None}
    backup = {"job-id": "j", "device": "source", "target": "target", "sync": "full", "x-perf": perf,
              "speed": 1}  # the first chunk goes at once
    unit = max(least or 0, 64 * KIB)
    if most and most < unit:
        t.check(str(unit) in qmp.fails("blockdev-backup", backup), "the error tells the range")
        daemon.quit()
        return
    qmp.execute("blockdev-backup", backup)
    expected = max(unit, 512 * KIB)
    if most:
        expected = min(expected, most // unit * unit)
    done = 0
    while done == 0:
        done = qmp.execute("query-jobs")[0]["current-progress"]
    t.equal(done, expected, "bytes of the first chunk")
    qmp.execute("block-job-set-speed", device="j", speed=0)
    qmp.wait_job("j")
    daemon.quit()
    t.reads_as("target.qcow2", "disk.raw")


@cases(workers=[1, 3, None, 1000])
def a_backup_has_as_many_workers_as_it_is_told(t, workers):
    """All chunks that are on their way meet the same error, then the job stops."""
    backup_images(t, 10 * MIB)
    daemon = Daemon(t)
    qmp = daemon.qmp
    add_nodes(qmp, error=EIO)
    qmp.execute("blockdev-backup", {
        "job-id": "j", "device": "source", "target": "target", "sync": "full",
        "on-target-error": "stop", "x-perf": {} if workers is None else {"max-workers": workers}})
    qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
    qmp.execute("query-jobs")  # all errors are told before the answer
    errors = [event for event in qmp.events if event["event"] == "BLOCK_JOB_ERROR"]
    t.equal(len(errors), {1: 1, 3: 3, None: 8, 1000: 20}[workers], "errors")
    daemon.kill()  # closing the target would fail, too


@case
def what_a_backup_cannot_do_is_refused(t):
    backup_images(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    add_nodes(qmp, **{"read-only": True})
    for perf, text in [({"use-copy-range": True}, "use-copy-range"),
                       ({"max-workers": 0}, "from 1 to 2147483647, not 0"),
                       ({"max-workers": 1 << 31}, "from 1 to 2147483647, not 2147483648"),
                       ({"max-chunk": -1}, "from 0"), ({"max-chunk": 1}, "from 65536"),
                       ({"min-cluster-size": 3 << 20}, "power of two"),
                       ({"min-cluster-size": 2 << 30}, "up to 1073741824"),
                       ({"min-cluster-size": -1}, "min-cluster-size"),
                       ({"workers": 1}, "unexpected")]:
        said = qmp.fails("blockdev-backup", {"job-id": "j", "device": "source", "target": "target",
                                             "sync": "full", "x-perf": perf})
        t.check(text in said, said)
    said = qmp.fails("blockdev-backup", {"job-id": "j", "device": "source", "target": "target",
                                         "sync": "full", "discard-source": True})
    t.check("'source' is read-only" in said, said)
    # The defaults, said aloud.
    qmp.execute("blockdev-backup", {
        "job-id": "j", "device": "source", "target": "target", "sync": "full",
        "discard-source": False, "x-perf": {"use-copy-range": False, "max-workers": 64,
                                            "max-chunk": 0, "min-cluster-size": 0}})
    qmp.wait_job("j")
    daemon.quit()
    t.reads_as("target.qcow2", "disk.raw")


@cases(sync=["full", "none"])
def a_backup_can_discard_what_it_has_copied(t, sync):
    disk = backup_images(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    add_nodes(qmp)
    qmp.execute("blockdev-backup", {
        "job-id": "j", "device": "source", "target": "target", "sync": sync,
        "discard-source": True, "filter-node-name": "filter", "speed": 1})
    guest_writes(t, qmp, "filter", "write -q -P 7 3148k 8k")  # which begins in the second last unit
    qmp.execute("block-job-set-speed", device="j", speed=0)
    if sync == "none":
        qmp.execute("block-job-cancel", device="j")
    qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    daemon.quit()
    at, length = 3148 * KIB, 8 * KIB
    start = at // (64 * KIB) * 64 * KIB
    unit = bytearray(64 * KIB)
    unit[at - start:at - start + length] = bytes([7]) * length
    copied = [(start, 64 * KIB)] if sync == "none" else [(0, 4 * MIB)]
    left, saved = bytearray(disk), bytearray(4 * MIB)
    for first, size in copied:
        left[first:first + size] = bytes(size)
        saved[first:first + size] = disk[first:first + size]
    left[start:start + 64 * KIB] = unit
    t.write("left.raw", bytes(left))
    t.write("saved.raw", bytes(saved))
    t.reads_as("source.qcow2", "left.raw")
    t.reads_as("target.qcow2", "saved.raw")
    t.sound("source.qcow2")
    if sync == "full":
        t.check(t.allocated("source.qcow2") < MIB, "the source has kept its space")


@case
def nodes_are_always_active(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", "1M")
    daemon = Daemon(t)
    qmp = daemon.qmp
    inactive = qcow2("disk", active=False)
    t.check("inactive nodes are not supported" in qmp.fails("blockdev-add", inactive), "refused")
    inner = qcow2("disk")
    inner["file"]["active"] = False
    t.check("file.active" in qmp.fails("blockdev-add", inner), "the error names the option")
    qmp.execute("blockdev-add", qcow2("disk", active=True))
    t.check("inactive nodes are not supported" in
            qmp.fails("blockdev-set-active", node_name="disk", active=False), "refused")
    qmp.execute("blockdev-set-active", active=True)
    qmp.fails("blockdev-reopen", options=[inactive])
    qmp.execute("blockdev-reopen", options=[qcow2("disk", active=True)])
    nodes = qmp.execute("query-named-block-nodes")
    t.equal({node["active"] for node in nodes}, {True})
    guest_writes(t, qmp, "disk", "write -q -P 1 0 64k")
    daemon.quit()


main()
