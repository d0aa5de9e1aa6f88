"""blockdev-compress: an image is compressed where it lies, while clients write to it."""
import os

from in_place import Scattered, size_of
from qmp import Daemon
from vise_iotest import CODECS, KIB, MIB, case, cases, main, mixed_data
from writer import Writer

SIZE = 16 * MIB


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


def make(t, codec="zlib", size=SIZE, cluster=64 * KIB, name="disk", seed=5):
    """An image without compressed clusters; what it holds."""
    data = mixed_data(size, 64 * KIB, seed)
    t.write(f"{name}.raw", data)
    t.vise_img("convert", "-O", "qcow2", "-o", f"compression_type={codec},cluster_size={cluster}",
               f"{name}.raw", f"{name}.qcow2")
    return data


def compressed(t, image="disk.qcow2"):
    return t.vise_img("check", "--output=json", image).json.get("compressed-clusters", 0)


def export(t, daemon, name, **more):
    path = t.path("nbd.sock")
    daemon.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": name, "name": "x",
                                        "writable": True, **more})
    return f"nbd+unix:///x?socket={path}"


@cases(codec=CODECS, compact=[False, True])
def as_small_as_a_compressed_copy_and_the_same(t, codec, compact):
    make(t, codec)
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", "disk.raw",
               "copy.qcow2")
    daemon = Daemon(t)
    daemon.execute("blockdev-add", qcow2("disk"))
    daemon.execute("blockdev-compress", job_id="j", device="disk", compact=compact)
    done = daemon.qmp.wait_job("j")
    t.equal((done["event"], done["data"]["type"]), ("BLOCK_JOB_COMPLETED", "compress"))
    t.equal((done["data"]["len"], done["data"]["offset"]), (SIZE, SIZE))
    daemon.quit()
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "disk.raw")
    t.equal(compressed(t), compressed(t, "copy.qcow2"), "compressed clusters")
    most = 1.1 * t.allocated("copy.qcow2") + 4 * 64 * KIB
    t.check(t.allocated("disk.qcow2") <= most, f"{t.allocated('disk.qcow2')} bytes, not {most}")
    if compact:
        length = os.path.getsize(t.path("disk.qcow2"))
        t.check(length <= 1.1 * os.path.getsize(t.path("copy.qcow2")) + 4 * 64 * KIB, length)


@cases(codec=CODECS, compact=[False, True], above=["disk", "cmp"])
def a_client_writes_meanwhile(t, codec, compact, above):
    data = make(t, codec)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    if above == "cmp":
        qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="disk",
                    discard="unmap")
    writer = Writer(t, export(t, daemon, above), data)
    writer.wait(10)
    qmp.execute("blockdev-compress", job_id="j", device=above, compact=compact, speed=MIB)
    writer.wait(60)
    qmp.execute("block-job-set-speed", device="j", speed=0)
    qmp.wait_job("j")
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "expected.raw")
    t.check(compressed(t) > 50, f"only {compressed(t)} compressed clusters")


@cases(codec=CODECS, compact=[False, True])
def pausing_and_cancelling_under_a_writer(t, codec, compact):
    data = make(t, codec)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    writer = Writer(t, export(t, daemon, "disk"), data)
    counts = []
    for round in range(4):
        qmp.execute("blockdev-compress", job_id="j", device="disk", compact=compact,
                    speed=0 if round == 3 else 4 * MIB)
        writer.wait(10)
        if round < 3:
            qmp.execute("job-pause", id="j")
            qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
            before = qmp.execute("query-block-jobs")[0]
            t.equal((before["status"], before["speed"]), ("paused", 4 * MIB))
            writer.wait(10)
            qmp.execute("job-resume", id="j")
            qmp.execute("job-cancel", id="j")
        t.equal(qmp.wait_job("j")["event"],
                "BLOCK_JOB_COMPLETED" if round == 3 else "BLOCK_JOB_CANCELLED")
        counts.append(t.vise_img("check", "-U", "--output=json", "disk.qcow2", code=(0, 2, 3))
                      .json.get("compressed-clusters", 0))
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.check(counts[2] < counts[3], f"compressed clusters: {counts}")
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "expected.raw")


@cases(codec=CODECS, compact=[False, True])
def a_killed_daemon_leaves_what_was_flushed(t, codec, compact):
    data = make(t, codec)
    for round in range(3):
        daemon = Daemon(t, name=f"qmp{round}")
        daemon.execute("blockdev-add", qcow2("disk"))
        writer = Writer(t, export(t, daemon, "disk"), data, seed=round)
        daemon.execute("blockdev-compress", job_id="j", device="disk", compact=compact,
                       speed=(2 * MIB, 16 * MIB, 0)[round])
        writer.wait((15, 40, 25)[round])
        daemon.kill()
        writer.leave()
        t.path("nbd.sock").unlink(missing_ok=True)
        checked = t.qemu_img("check", "disk.qcow2", code=(0, 3))  # leaks at worst
        t.check("corrupt" not in checked.stdout, checked)
        t.vise_img("convert", "-O", "raw", "disk.qcow2", "found.raw")
        data = t.read("found.raw")
        t.check(writer.allows(data), f"round {round}: the content is not what may be there")
    t.vise_img("compress", "disk.qcow2")
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "found.raw")


@cases(form=["cluster_size=4k", "cluster_size=64k,compression_type=zstd", "cluster_size=64k,extended_l2=on"])
def snapshots_move_below_a_writer(t, form):
    image = Scattered(t, form)
    before, length = image.held()[1:], size_of(t, "a.qcow2")
    t.vise_img("convert", "-O", "raw", "a.qcow2", "now.raw")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("a"))
    writer = Writer(t, export(t, daemon, "a"), t.read("now.raw"))
    writer.wait(5)
    qmp.execute("blockdev-compress", job_id="j", device="a", compact=True, speed=8 * MIB)
    writer.wait(60)
    qmp.execute("block-job-set-speed", device="j", speed=24 * MIB)
    t.equal(qmp.wait_job("j")["event"], "BLOCK_JOB_COMPLETED")
    during = size_of(t, "a.qcow2")
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected.raw")
    t.equal(image.held()[1:], before, "what the snapshots hold, says qemu-img")
    t.check(during < length * 0.85, f"{length} bytes became {during}")


@cases(form=["cluster_size=4k", "cluster_size=64k,compression_type=zstd"])
def snapshots_survive_when_the_daemon_is_killed(t, form):
    image = Scattered(t, form)
    before = image.held()[1:]
    t.vise_img("convert", "-O", "raw", "a.qcow2", "found.raw")
    for round in range(4):
        daemon = Daemon(t, name=f"qmp{round}")
        daemon.execute("blockdev-add", qcow2("a"))
        writer = Writer(t, export(t, daemon, "a"), t.read("found.raw"), seed=round)
        daemon.execute("blockdev-compress", job_id="j", device="a", compact=True)
        writer.wait((10, 20, 40, 60)[round])
        daemon.kill()
        writer.leave()
        t.path("nbd.sock").unlink(missing_ok=True)
        t.qemu_img("check", "a.qcow2", code=(0, 3))  # leaks at worst
        t.vise_img("convert", "-O", "raw", "a.qcow2", "found.raw")
        t.check(writer.allows(t.read("found.raw")), f"round {round}: the content is not what may be there")
        t.equal(image.held()[1:], before, f"round {round}: what the snapshots hold")
    t.vise_img("compress", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "found.raw")
    t.equal(image.held()[1:], before, "what the snapshots hold")


@case
def a_base_is_compressed_below_a_writer(t):
    data = make(t, name="base")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2")
    t.vise_img("snapshot", "-c", "kept", "disk.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("base", **{"read-only": True}))
    qmp.execute("blockdev-add", qcow2("disk", backing="base"))
    writer = Writer(t, export(t, daemon, "disk"), data)
    qmp.execute("blockdev-compress", job_id="j", device="base", compact=True, level=1)
    qmp.wait_job("j")
    nodes = {entry["node-name"]: entry for entry in qmp.execute("query-named-block-nodes")}
    t.check(nodes["base"]["ro"], "it is read-only again")
    writer.wait(20)
    t.write("expected.raw", writer.stop())
    daemon.quit()
    for image in ("base.qcow2", "disk.qcow2"):
        t.sound(image)
    t.reads_as("base.qcow2", "base.raw")
    t.reads_as("disk.qcow2", "expected.raw")
    t.check(compressed(t, "base.qcow2") > 50, "the base is compressed")


@cases(policy=["report", "stop", "ignore", "enospc"])
def errors_are_met_as_the_client_wishes(t, policy):
    make(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": "disk.qcow2"},
        "inject-error": [{"event": "read_aio", "errno": 5, "once": True}]}})
    qmp.execute("blockdev-compress", job_id="j", device="disk", on_error=policy)
    told = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
    action = "report" if policy == "enospc" else policy
    t.equal(told["action"], action)
    if action == "stop":
        qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
        t.equal(qmp.execute("query-block-jobs")[0]["io-status"], "failed")
        qmp.execute("job-resume", id="j")
    done = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    t.equal("error" in done, action == "report")
    qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    daemon.quit()
    t.vise_img("convert", "-c", "-O", "qcow2", "disk.raw", "copy.qcow2")
    t.equal(compressed(t) == compressed(t, "copy.qcow2"), action != "report")
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "disk.raw")


def broken(place=None, event="read_aio"):
    """The image with an error below it that lasts: at one host offset, or everywhere."""
    error = {"event": event, "errno": 5}
    if place is not None:
        error["sector"] = place // 512
    return {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": "disk.qcow2"},
        "inject-error": [error]}}


def count(qmp, name):
    return sum(event["event"] == name for event in qmp.events)


@cases(compact=[False, True])
def a_lasting_error_costs_one_place(t, compact):
    make(t)
    t.vise_img("convert", "-c", "-O", "qcow2", "disk.raw", "copy.qcow2")
    data = [entry for entry in t.map_of("vise_img", "disk.qcow2") if entry["data"]]
    place = data[len(data) // 2]["offset"]
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", broken(place))
    qmp.execute("blockdev-compress", job_id="j", device="disk", compact=compact, on_error="ignore")
    failed = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    t.check("bytes were left out, the last of them for: error while" in failed["error"], failed)
    t.equal(failed["offset"], failed["len"])
    told = count(qmp, "BLOCK_JOB_ERROR")  # it is tried once more, and in each round of moves
    t.check(2 <= told <= 10 if compact else told == 2, f"{told} events")
    qmp.execute("blockdev-compress", job_id="j", device="disk", on_error="stop")
    for round in range(3):
        qmp.wait_event("BLOCK_JOB_ERROR", device="j")
        qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
        t.equal(qmp.execute("query-block-jobs")[0]["io-status"], "failed")
        if round < 2:
            qmp.execute("job-resume", id="j")
    qmp.execute("job-cancel", id="j")
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
    daemon.quit()
    missing = compressed(t, "copy.qcow2") - compressed(t)
    t.check(0 < missing <= 16, f"{missing} clusters are not compressed")
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "disk.raw")


@cases(policy=["ignore", "report"])
def where_nothing_works_the_job_ends(t, policy):
    make(t, size=128 * MIB)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", broken(event="write_compressed"))
    qmp.execute("blockdev-compress", job_id="j", device="disk", on_error=policy)
    failed = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    t.check("error while compressing at byte" in failed["error"], failed)
    told = count(qmp, "BLOCK_JOB_ERROR")
    t.check(told == 1 if policy == "report" else 32 < told < 128, f"{told} events")
    daemon.kill()  # nothing can be written any more, which is what quitting would say, too
    t.vise_img("check", "disk.qcow2", code=(0, 3))  # leaks at worst
    t.reads_as("disk.qcow2", "disk.raw")


@case
def a_lasting_error_in_a_snapshot_costs_one_place(t):
    """Neither endless nor the end: what else snapshots hold is compressed."""
    data = make(t, size=32 * MIB)
    t.vise_img("snapshot", "-c", "one", "disk.qcow2")
    found = [entry for entry in t.map_of("vise_img", "disk.qcow2") if entry["data"]]
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", broken(found[0]["offset"], "none"))
    qmp.execute("blockdev-compress", job_id="j", device="disk", on_error="ignore")
    failed = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    t.check("bytes were left out" in failed["error"], failed)
    t.check(1 <= count(qmp, "BLOCK_JOB_ERROR") <= 3, "events")
    daemon.quit()
    t.check(compressed(t) > len(data) // (64 * KIB) // 4, f"{compressed(t)} compressed clusters")
    t.sound("disk.qcow2")
    t.reads_as("disk.qcow2", "disk.raw")


@case
def what_cannot_be_is_refused(t):
    make(t)
    t.vise_img("create", "-f", "qcow2", "-o", "refcount_bits=1", "bits.qcow2", str(SIZE))
    t.write("plain", bytes(MIB))
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", qcow2("disk"))
    qmp.execute("blockdev-add", qcow2("bits"))
    qmp.execute("blockdev-add", driver="raw", node_name="raw",
                file={"driver": "file", "filename": "plain"})
    for arguments, text in [
        ({"device": "disk"}, "Invalid job ID"),
        ({"device": "nope", "job-id": "j"}, "nope"),
        ({"device": "raw", "job-id": "j"}, "'raw' cannot be compressed"),
        ({"device": "disk", "job-id": "j", "level": 13}, "12"),
        ({"device": "disk", "job-id": "j", "level": -1}, "level"),
        ({"device": "disk", "job-id": "j", "speed": -1}, "speed"),
        ({"device": "disk", "job-id": "j", "on-error": "never"}, "never"),
    ]:
        t.check(text in qmp.fails("blockdev-compress", arguments), arguments)
    t.equal(qmp.execute("query-jobs"), [])
    qmp.execute("blockdev-compress", job_id="j", device="bits")
    failed = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    t.check("refcounts of 1 bit" in failed["error"], failed)
    qmp.execute("blockdev-compress", job_id="k", device="disk", speed=1, auto_dismiss=False)
    for name, arguments in [
        ("blockdev-compress", {"job-id": "l", "device": "disk"}),
        ("block_resize", {"node-name": "disk", "size": 2 * SIZE}),
        ("blockdev-snapshot-internal-sync", {"device": "disk", "name": "s"}),
        ("blockdev-del", {"node-name": "disk"}),
        ("blockdev-reopen", {"options": [qcow2("disk")]}),
    ]:
        t.check("busy" in qmp.fails(name, arguments), f"{name} during the job")
    qmp.execute("job-cancel", id="k")
    qmp.wait_event("JOB_STATUS_CHANGE", id="k", status="concluded")
    t.equal(qmp.execute("query-jobs")[0]["error"], "Operation canceled")
    qmp.execute("job-dismiss", id="k")
    daemon.quit()
    t.reads_as("disk.qcow2", "disk.raw")
    t.sound("disk.qcow2")


@case
def nor_is_it_reopened_from_above(t):
    make(t)
    t.vise_img("create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    over = {**qcow2("over"), "backing": qcow2("disk")}
    qmp.execute("blockdev-add", over)
    qmp.execute("blockdev-compress", job_id="j", device="disk", speed=1)
    over["backing"]["l2-cache-entry-size"] = 512
    t.check("busy" in qmp.fails("blockdev-reopen", {"options": [over]}), "during the job")
    qmp.execute("job-cancel", id="j")
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
    qmp.execute("blockdev-reopen", options=[over])
    daemon.quit()
    t.reads_as("disk.qcow2", "disk.raw")
    t.sound("disk.qcow2")


main()
