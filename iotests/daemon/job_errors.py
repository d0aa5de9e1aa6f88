"""Errors in the middle of jobs: each policy on each side, a client that writes meanwhile, and jobs
that fail together."""
import shutil

from qmp import Daemon
from vise_iotest import KIB, MIB, case, cases, main, mixed_data

SIZE = 4 * MIB
JOBS = ["stream", "commit", "active commit", "backup", "mirror"]
POLICIES = ["report", "ignore", "stop", "enospc"]
EIO, ENOSPC = 5, 28
IMAGES = ("base", "mid", "top", "copy")
FILTERS = ("copy-on-read", "copy-before-write", "mirror_top", "commit_top")


def make_images(t, codec="zlib", compress=()):
    """base <- mid <- top, of which each holds something, and an empty copy. Returns what top shows."""
    disk = bytearray(mixed_data(SIZE, 64 * KIB, 7))
    t.write("content.raw", bytes(disk))
    options = ["-o", f"compression_type={codec}"]
    t.vise_img("convert", *compress, "-O", "qcow2", *options, "content.raw", "base.qcow2")
    for number, (name, below) in enumerate([("mid", "base"), ("top", "mid")], 1):
        t.vise_img("create", "-f", "qcow2", "-F", "qcow2", "-b", f"{below}.qcow2", *options,
                   f"{name}.qcow2")
        offset, length = number * MIB, 512 * KIB
        t.vise_io("-f", "qcow2", f"{name}.qcow2",
                  commands=[f"write {' '.join(compress)} -P {number} {offset} {length}"])
        disk[offset:offset + length] = bytes([number]) * length
    t.vise_img("create", "-f", "qcow2", *options, "copy.qcow2", SIZE)
    return disk


def node(name, error=None, **more):
    """A qcow2 node; `error`: blkdebug's event, the errno of the first such request, and to how many
    it happens (1)."""
    file = {"driver": "file", "filename": f"{name}.qcow2"}
    if error:
        rule = {"event": error[0], "errno": error[1], "once": True}
        file = {"driver": "blkdebug", "image": file, "node-name": f"{name}-errors",
                "inject-error": [rule] * (error[2] if len(error) > 2 else 1)}
    return {"driver": "qcow2", "node-name": name, "discard": "unmap", "file": file, **more}


# Where each job reads and where it writes.
SIDES = {"stream": ("mid", "top"), "commit": ("mid", "base"), "active commit": ("top", "base"),
         "backup": ("top", "copy"), "mirror": ("top", "copy")}


def start(daemon, job, side, event, errno, policy, compressed=False, times=1):
    """Opens the chain with an error on one side, and starts the job with that policy. Returns the
    node that clients use."""
    broken = SIDES[job][0 if side == "source" else 1]

    def add(name, **more):
        error = (event, errno, times) if name == broken else None
        daemon.execute("blockdev-add", node(name, error, **more))

    add("base", **({} if "commit" in job else {"read-only": True}))
    add("mid", backing="base", **{"read-only": True})
    add("top", backing="mid")
    add("copy")
    device, target, base = "top", "copy", "base"
    if compressed:
        above = {"stream": "top", "backup": "copy", "mirror": "copy"}.get(job)
        if above:
            daemon.execute("blockdev-add", driver="compress", node_name="cmp", file=above)
            device, target = ("cmp", target) if above == "top" else (device, "cmp")
    both = {"on-source-error": policy if side == "source" else "report",
            "on-target-error": policy if side == "target" else "report"}
    name, arguments = {
        "stream": ("block-stream", {"device": device, "on-error": policy}),
        "commit": ("block-commit", {"device": device, "top-node": "mid", "base-node": base,
                                    "backing-file": "base.qcow2", "on-error": policy}),
        "active commit": ("block-commit", {"device": device, "base-node": base,
                                           "on-error": policy}),
        "backup": ("blockdev-backup", {"device": device, "target": target, "sync": "full", **both}),
        "mirror": ("blockdev-mirror", {"device": device, "target": target, "sync": "full", **both}),
    }[job]
    daemon.execute(name, {**arguments, "job-id": "job"})
    return device


def end(daemon, job):
    """Lets the job end; returns the error of BLOCK_JOB_COMPLETED, or None."""
    qmp = daemon.qmp
    if job in ("mirror", "active commit"):
        while True:  # ready, or failed before
            names = [event["event"] for event in qmp.events]
            if "BLOCK_JOB_COMPLETED" in names:
                break
            if "BLOCK_JOB_READY" in names:
                qmp.wait_event("BLOCK_JOB_READY", device="job")
                qmp.execute("job-complete", id="job")
                break
            qmp.events.append(qmp.message())
    done = qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
    qmp.wait_event("JOB_STATUS_CHANGE", id="job", status="null")
    return done.get("error")


def result_of(job, failed):
    """The image that shows the disk when the job is over."""
    if failed or job in ("stream", "commit"):
        return "top.qcow2"
    return "base.qcow2" if job == "active commit" else "copy.qcow2"


def check_images(t, job, disk):
    t.write("disk.raw", bytes(disk))
    t.reads_as(result_of(job, failed=False), "disk.raw")
    for name in {result_of(job, failed=False).removesuffix(".qcow2"), *SIDES[job]}:
        t.sound(f"{name}.qcow2")


@cases(job=JOBS, side=["source", "target"])
def every_policy_does_what_qemu_does(t, job, side):
    event = "read_aio" if side == "source" else "write_aio"
    disk = make_images(t)
    for name in IMAGES:
        shutil.copy(t.path(f"{name}.qcow2"), t.path(f"{name}.fresh"))
    for policy, errno in [*((policy, EIO) for policy in POLICIES), ("enospc", ENOSPC)]:
        seen = {}
        for binary in ("qemu", "vise"):
            for name in IMAGES:
                shutil.copy(t.path(f"{name}.fresh"), t.path(f"{name}.qcow2"))
            daemon = Daemon(t, binary=binary, name=binary)
            qmp = daemon.qmp
            start(daemon, job, side, event, errno, policy)
            error = qmp.wait_event("BLOCK_JOB_ERROR", device="job")["data"]
            status = None
            if error["action"] == "stop":
                qmp.wait_event("JOB_STATUS_CHANGE", id="job", status="paused")
                status = qmp.execute("query-block-jobs")[0]["io-status"]
                qmp.execute("job-resume", id="job")
            failed = end(daemon, job) is not None
            drivers = [entry["drv"] for entry in qmp.execute("query-named-block-nodes")]
            filters = [driver for driver in drivers if driver in FILTERS]
            # QEMU's stream is a read that copies: so it calls errors of the target, too.
            operation = "read" if job == "stream" else error["operation"]
            seen[binary] = (operation, error["action"], status, failed, filters)
            daemon.quit()
        t.equal(seen["vise"], seen["qemu"], f"{policy}, errno {errno}")
        t.write("disk.raw", bytes(disk))
        t.qemu_img("compare", "-f", "qcow2", "-F", "raw", result_of(job, failed), "disk.raw")
        t.qemu_img("check", "-f", "qcow2", f"{SIDES[job][1]}.qcow2")


@cases(job=JOBS, side=["source", "target"])
def compressed_jobs_go_on_after_an_error_though_a_client_writes(t, job, side):
    disk = make_images(t, "zlib" if side == "source" else "zstd", ["-c"])
    daemon = Daemon(t)
    qmp = daemon.qmp
    # What is stored under a compress filter is written compressed; commit writes normally here.
    event = "read_compressed" if side == "source" else (
        "write_aio" if "commit" in job else "write_compressed")

    def write(number):
        commands = []
        for place in range(6):
            offset, length = (place * 13 + number * 5) % 60 * 64 * KIB + 512, 40 * KIB
            commands.append(f"write -P {100 + number} {offset} {length}")
            disk[offset:offset + length] = bytes([100 + number]) * length
        t.qemu_io("-f", "raw", f"nbd+unix:///disk?socket={t.path('nbd.sock')}",
                  commands=[*commands, "flush"])

    device = start(daemon, job, side, event, EIO, "stop", compressed=True)
    snapshot = bytes(disk)
    qmp.execute("nbd-server-start",
                addr={"type": "unix", "data": {"path": str(t.path("nbd.sock"))}})
    qmp.wait_event("BLOCK_JOB_ERROR", device="job")
    qmp.wait_event("JOB_STATUS_CHANGE", id="job", status="paused")
    qmp.execute("block-export-add", type="nbd", id="export", node_name=device, name="disk",
                writable=True)
    write(1)
    qmp.execute("job-resume", id="job")
    write(2)
    t.equal(end(daemon, job), None)
    write(3)
    daemon.quit()
    if job == "backup":
        check_images(t, job, snapshot)
        t.write("disk.raw", bytes(disk))
        t.reads_as("top.qcow2", "disk.raw")
    else:
        check_images(t, job, disk)


def fill_top(t):
    """No zeros between data: of each stretch one write is on its way at a time, so that the next
    error is another stretch's. Returns what top shows."""
    t.vise_io("-f", "qcow2", "top.qcow2", commands=[f"write -P 9 0 {SIZE}"])
    return bytes([9]) * SIZE


@cases(job=JOBS)
def errors_that_come_together_stop_a_job_once(t, job):
    """Stretches are copied several at a time: one resume is for all that have failed."""
    disk = make_images(t)
    if job in ("backup", "mirror"):
        disk[:] = fill_top(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    times = {"stream": 1, "commit": 1}.get(job, 2)  # mid holds one stretch only
    start(daemon, job, "target", "write_aio", ENOSPC, "enospc", times=times)
    qmp.wait_event("JOB_STATUS_CHANGE", id="job", status="paused")
    t.equal(qmp.execute("query-block-jobs")[0]["io-status"], "nospace")
    for _ in range(times):
        t.equal(qmp.wait_event("BLOCK_JOB_ERROR", device="job")["data"]["operation"], "write")
    qmp.execute("job-resume", id="job")
    t.equal(end(daemon, job), None)
    states = [event["data"].get("status") for event in qmp.events]
    t.check("paused" not in states, "the job paused again")
    daemon.quit()
    check_images(t, job, disk)


@case
def a_job_that_has_failed_is_not_paused(t):
    """Of two errors that come together one stops the job, and the other one ends it."""
    make_images(t)
    fill_top(t)
    daemon = Daemon(t)
    qmp = daemon.qmp
    daemon.execute("blockdev-add", node("top"))
    copy = node("copy")
    copy["file"] = {"driver": "blkdebug", "image": copy["file"], "inject-error": [
        {"event": "write_aio", "errno": errno, "once": True} for errno in (ENOSPC, EIO)]}
    daemon.execute("blockdev-add", copy)
    daemon.execute("blockdev-backup", job_id="job", device="top", target="copy", sync="full",
                   on_target_error="enospc", auto_dismiss=False)
    actions = {qmp.wait_event("BLOCK_JOB_ERROR", device="job")["data"]["action"] for _ in range(2)}
    t.equal(actions, {"stop", "report"}, "actions")
    qmp.wait_event("JOB_STATUS_CHANGE", id="job", status="concluded")
    t.check("concluded" in qmp.fails("job-resume", id="job"), "resumed though it is over")
    t.equal(qmp.execute("query-jobs")[0]["status"], "concluded", "status")
    daemon.execute("job-dismiss", id="job")
    daemon.quit()


@case
def backups_of_one_transaction_fail_together(t):
    """The second one meets an error: the first is cancelled, both bitmaps stay what they were."""
    seen = {}
    for binary in ("qemu", "vise"):
        for name in ("one", "two"):
            t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", SIZE)
            t.qemu_img("bitmap", "--add", "-g", "64k", f"{name}.qcow2", "b")
            t.qemu_io("-f", "qcow2", f"{name}.qcow2", commands=[f"write -P 1 0 {MIB}"])
            t.vise_img("create", "-f", "qcow2", f"{name}-copy.qcow2", SIZE)
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        for name in ("one", "two"):
            qmp.execute("blockdev-add", node(name))
        qmp.execute("blockdev-add", node("one-copy"))
        qmp.execute("blockdev-add", node("two-copy", ("write_aio", EIO)))
        # The first is so slow that it is still there when the second fails.
        actions = [{"type": "blockdev-backup", "data": {
            "job-id": name, "device": name, "target": f"{name}-copy", "sync": "incremental",
            "bitmap": "b", "speed": 65536 if name == "one" else 0}} for name in ("one", "two")]
        qmp.execute("transaction", actions=actions, properties={"completion-mode": "grouped"})
        failed = qmp.wait_event("BLOCK_JOB_COMPLETED", device="two")["data"]
        t.check("Input/output error" in failed["error"], failed)
        qmp.wait_event("BLOCK_JOB_CANCELLED", device="one")
        for name in ("one", "two"):
            qmp.wait_event("JOB_STATUS_CHANGE", id=name, status="null")
        bits = [qmp.execute("x-debug-block-dirty-bitmap-sha256", node=name, name="b")
                for name in ("one", "two")]
        nodes = sorted(entry["node-name"] for entry in qmp.execute("query-named-block-nodes")
                       if not entry["node-name"].startswith("#"))
        seen[binary] = (bits, nodes)
        # What has failed can be done again.
        actions[0]["data"]["speed"] = 0
        qmp.execute("transaction", actions=actions, properties={"completion-mode": "grouped"})
        for name in ("one", "two"):
            qmp.wait_job(name)
        daemon.quit()
        for name in ("one", "two"):
            t.qemu_img("compare", f"{name}.qcow2", f"{name}-copy.qcow2")
            t.sound(f"{name}-copy.qcow2")
    t.equal(seen["vise"], seen["qemu"])


@cases(mode=["individual", "grouped"], finalize=[True, False])
def a_backup_of_a_refused_transaction_is_told_as_qemu_does(t, mode, finalize):
    for name in ("one", "copy"):
        t.vise_img("create", "-f", "qcow2", f"{name}.qcow2", SIZE)
    seen = {}
    for binary in ("qemu", "vise"):
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        for name in ("one", "copy"):
            qmp.execute("blockdev-add", node(name))
        actions = [{"type": "blockdev-backup", "data": {
            "job-id": target, "device": "one", "target": target, "sync": "full",
            "auto-finalize": finalize, "auto-dismiss": finalize}} for target in ("copy", "nope")]
        qmp.fails("transaction", actions=actions, properties={"completion-mode": mode})
        t.equal(qmp.execute("query-jobs"), [], "jobs")
        seen[binary] = [(event["event"], event["data"]) for event in qmp.events]
        qmp.execute("blockdev-del", node_name="copy")  # which nobody holds any more
        daemon.quit()
    t.equal(seen["vise"], seen["qemu"], "events")


main()
