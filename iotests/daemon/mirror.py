"""Options of blockdev-mirror, and block-job-change: that they do what they say, under a writer."""
import time

from qmp import Daemon
from vise_iotest import KIB, MIB, case, cases, main, mixed_data
from writer import Writer

SIZE = 8 * MIB


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


def raw(name):
    return {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": f"{name}.raw"}}


def make(t):
    data = mixed_data(SIZE, 64 * KIB, 7)
    t.write("disk.raw", data)
    t.vise_img("convert", "-O", "qcow2", "disk.raw", "disk.qcow2")
    t.vise_img("create", "-f", "qcow2", "copy.qcow2", str(SIZE))
    return data


def export(t, daemon, name):
    path = t.path("nbd.sock")
    daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": name, "name": "x",
                                        "writable": True})
    return f"nbd+unix:///x?socket={path}"


def filtered_above(daemon, names):
    """The name of the file that each filter shows."""
    entries = daemon.execute("query-named-block-nodes", flat=True)
    return {entry["node-name"]: [part for part in ("disk.qcow2", "copy.qcow2") if part in entry["file"]]
            for entry in entries if entry["node-name"] in names}


@cases(mode=["background", "write-blocking"], ends=["complete", "cancel"])
def the_target_takes_the_place_of_a_node_below_filters(t, mode, ends):
    data = make(t)
    daemon = Daemon(t, "--object", "throttle-group,id=g")
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    qmp.execute("blockdev-add", qcow2("copy"))
    for name, below in (("low", "disk"), ("top", "low")):
        qmp.execute("blockdev-add", driver="throttle", node_name=name, throttle_group="g",
                    file=below, discard="unmap")
    writer = Writer(t, export(t, daemon, "top"), data)
    qmp.execute("blockdev-mirror", job_id="j", device="top", target="copy", sync="full",
                replaces="disk", copy_mode=mode)
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    writer.wait(20)
    if ends == "complete":
        qmp.execute("job-complete", id="j")
    else:
        qmp.execute("block-job-cancel", device="j")
    qmp.wait_job("j")
    now = "copy.qcow2" if ends == "complete" else "disk.qcow2"
    t.equal(filtered_above(daemon, ("top", "low")), {"top": [now], "low": [now]})
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.reads_as(now, "expected.raw")
    for image in ("disk.qcow2", "copy.qcow2"):
        t.sound(image)


@case
def qemu_replaces_the_same_nodes(t):
    left = {}
    for binary in ("vise", "qemu"):
        make(t)
        daemon = Daemon(t, "--object", "throttle-group,id=g", binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", qcow2("disk"))
        qmp.execute("blockdev-add", qcow2("copy"))
        qmp.execute("blockdev-add", driver="null-co", node_name="other", size=SIZE)
        qmp.execute("blockdev-add", driver="throttle", node_name="top", throttle_group="g",
                    file="disk")
        mirror = {"job-id": "j", "device": "top", "target": "copy", "sync": "full"}
        left[binary] = []
        for wrong in ({"replaces": "nope"}, {"replaces": "other"}, {"buf-size": -1}):
            error = qmp.fails("blockdev-mirror", {**mirror, **wrong})
            left[binary].append(error.split(":")[:2] if "buf-size" in wrong else error)
            t.equal(qmp.execute("query-jobs"), [])
        qmp.execute("blockdev-mirror", {**mirror, "replaces": "disk", "buf-size": 65536})
        qmp.wait_event("BLOCK_JOB_READY", device="j")
        qmp.execute("job-complete", id="j")
        qmp.wait_job("j")
        left[binary].append(filtered_above(daemon, ("top", "disk", "copy")))
        if binary == "vise":
            # QEMU 7.2 goes on showing the old options of the filter.
            t.equal(left[binary][-1]["top"], ["copy.qcow2"])
        left[binary][-1].pop("top")
        daemon.quit()
    left["vise"][2] = left["vise"][2][:1]
    left["qemu"][2] = left["qemu"][2][:1]
    t.equal(left["vise"], left["qemu"])


def seconds_of_mirror(qmp, **more):
    start = time.monotonic()
    qmp.execute("blockdev-mirror", job_id="j", device="disk", target="slow", sync="full", **more)
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    taken = time.monotonic() - start
    qmp.execute("job-cancel", id="j")
    qmp.wait_job("j")
    return taken


@case
def a_small_buffer_keeps_little_on_its_way(t):
    t.write("disk.raw", bytes([1]) * 32 * MIB)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", raw("disk"))
    qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "slow", "size": 32 * MIB,
                                 "latency-ns": 20_000_000})
    # One chunk of 1 MiB after the other, each of which takes 20 ms; without a bound 8 at a time.
    one_by_one = seconds_of_mirror(qmp, buf_size=MIB)
    t.check(one_by_one >= 32 * 0.02, f"{one_by_one} s")
    t.check(seconds_of_mirror(qmp) < one_by_one, "as slow without a bound")
    # 512 KiB at a time, twice as many.
    halves = seconds_of_mirror(qmp, buf_size=512 * KIB)
    t.check(halves >= 64 * 0.02, f"{halves} s")
    daemon.quit()


@cases(granularity=[512, 4 * KIB, 64 * KIB, MIB])
def so_many_bytes_are_copied_at_least(t, granularity):
    t.write("disk.raw", bytes(SIZE))
    t.write("copy.raw", bytes(SIZE))
    daemon = Daemon(t)
    qmp = daemon.qmp
    for name in ("disk", "copy"):
        qmp.execute("blockdev-add", raw(name))
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk"))
    qmp.execute("blockdev-mirror", job_id="j", device="disk", target="copy", sync="none",
                granularity=granularity)
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    client.command_line("write -P 9 2M 512")
    while True:
        info = qmp.execute("query-block-jobs")[0]
        if info["len"] and info["offset"] == info["len"]:
            break
    t.equal(info["len"], granularity)
    t.equal(client.end(), 0)
    qmp.execute("job-cancel", id="j")
    qmp.wait_job("j")
    for wrong in (0, 256, 3 * KIB, 128 * MIB):
        t.check("granularity" in qmp.fails("blockdev-mirror", job_id="j", device="disk",
                                           target="copy", sync="none", granularity=wrong), wrong)
    daemon.quit()
    t.equal(t.read("copy.raw")[2 * MIB:2 * MIB + 512], bytes([9]) * 512)


@cases(unmap=[None, True, False])
def zeros_keep_their_space_in_the_target_if_they_must(t, unmap):
    t.write("disk.raw", bytes([1]) * MIB + bytes(MIB) + bytes([2]) * (SIZE - 2 * MIB))
    t.vise_img("convert", "-O", "qcow2", "disk.raw", "disk.qcow2")
    t.vise_img("create", "-f", "qcow2", "copy.qcow2", str(SIZE))
    t.vise_io("-f", "qcow2", "copy.qcow2", commands=["write -q -P 9 0 8M"])
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    qmp.execute("blockdev-add", qcow2("copy"))
    more = {} if unmap is None else {"unmap": unmap}
    qmp.execute("blockdev-mirror", job_id="j", device="disk", target="copy", sync="full", **more)
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    qmp.execute("job-complete", id="j")
    qmp.wait_job("j")
    daemon.quit()
    t.reads_as("copy.qcow2", "disk.raw")
    t.sound("copy.qcow2")
    zeros = [entry for entry in t.qemu_img("map", "--output=json", "copy.qcow2").json
             if entry["start"] == MIB]
    t.equal([(entry["zero"], "offset" in entry) for entry in zeros], [(True, unmap is False)])


@case
def a_mirror_starts_to_hold_writes_back(t):
    t.write("disk.raw", bytes([1]) * SIZE)
    t.write("copy.raw", bytes([1]) * SIZE)
    daemon = Daemon(t)
    qmp = daemon.qmp
    for name in ("disk", "copy"):
        qmp.execute("blockdev-add", raw(name))
    qmp.execute("blockdev-add", driver="null-co", node_name="null", size=SIZE)
    client = t.hold("qemu-io", "-f", "raw", export(t, daemon, "disk"))
    qmp.execute("blockdev-mirror", job_id="j", device="disk", target="copy", sync="none")
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    t.equal(qmp.execute("query-block-jobs")[0]["actively-synced"], False)
    change = {"id": "j", "type": "mirror", "copy-mode": "write-blocking"}
    qmp.execute("block-job-change", {**change, "copy-mode": "background"})  # as it is
    qmp.execute("block-job-change", change)
    qmp.execute("block-job-change", change)
    while not qmp.execute("query-block-jobs")[0]["actively-synced"]:
        pass
    for number in range(2, 40):
        client.command_line(f"write -P {number} {number * 64}k 4k")
        start = number * 64 * KIB
        t.equal(t.read("copy.raw")[start:start + 4 * KIB], bytes([number]) * 4 * KIB)
    for wrong, text in (({**change, "copy-mode": "background"}, "'background' is not implemented"),
                        ({"id": "j", "type": "commit"}, "is of type 'mirror', not 'commit'"),
                        ({**change, "id": "k"}, "DeviceNotActive: Block job 'k' not found"),
                        ({"id": "j", "type": "mirror"}, "'copy-mode' is missing"),
                        ({**change, "copy-mode": "x"}, "does not accept value 'x'"),
                        ({"id": "j", "type": "x"}, "does not accept value 'x'")):
        error = qmp.fails("block-job-change", wrong)
        t.check(text in error, f"{wrong}: {error}")
    qmp.execute("job-complete", id="j")
    qmp.wait_job("j")
    t.equal(client.end(), 0)
    daemon.quit()
    t.equal(t.digest("copy.raw"), t.digest("disk.raw"))


@cases(mode=["ready", "running"])
def a_changed_mirror_keeps_step_with_a_writer(t, mode):
    data = make(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    qmp.execute("blockdev-add", qcow2("copy"))
    writer = Writer(t, export(t, daemon, "disk"), data)
    qmp.execute("blockdev-mirror", job_id="j", device="disk", target="copy", sync="full",
                speed=0 if mode == "ready" else MIB)
    if mode == "ready":
        qmp.wait_event("BLOCK_JOB_READY", device="j")
    writer.wait(20)
    qmp.execute("block-job-change", {"id": "j", "type": "mirror", "copy-mode": "write-blocking"})
    qmp.execute("block-job-set-speed", device="j", speed=0)
    if mode == "running":
        qmp.wait_event("BLOCK_JOB_READY", device="j")
    writer.wait(20)
    while not qmp.execute("query-block-jobs")[0]["actively-synced"]:
        pass
    qmp.execute("job-complete", id="j")
    qmp.wait_job("j")
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.reads_as("copy.qcow2", "expected.raw")
    t.sound("copy.qcow2")


main()
