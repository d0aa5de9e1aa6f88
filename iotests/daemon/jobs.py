"""stream, backup, commit, mirror and create jobs of vise-storage-daemon: contents, states, events, errors."""
from qmp import Daemon
from vise_iotest import CODECS, KIB, MIB, case, cases, main, mixed_data

SIZE = 8 * MIB
FORMATS = ["plain", *CODECS]


def node(name, filename=None, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": filename or f"{name}.qcow2"}, **more}


def make_chain(t, way, names=("base", "mid", "top")):
    """Images that each hold parts of a disk, and `disk.raw`, what the last one shows."""
    disk = bytearray(mixed_data(SIZE, 64 * KIB, 1))
    codec = "zlib" if way == "plain" else way
    t.write("content.raw", bytes(disk))
    compress = [] if way == "plain" else ["-c"]
    t.vise_img("convert", "-O", "qcow2", *compress, "-o", f"compression_type={codec}",
               "content.raw", f"{names[0]}.qcow2")
    for number, name in enumerate(names[1:]):
        t.vise_img("create", "-f", "qcow2", "-F", "qcow2", "-b", f"{names[number]}.qcow2",
                   "-o", f"compression_type={codec}", f"{name}.qcow2")
        commands = []
        for place in range(4):
            offset = (place * 31 + number * 17) % 120 * 64 * KIB
            value = 16 * number + place + 1
            length = 128 * KIB
            commands.append(f"write {'' if way == 'plain' else '-c '}-P {value} {offset} {length}")
            disk[offset:offset + length] = bytes([value]) * length
        t.qemu_io("-f", "qcow2", f"{name}.qcow2", commands=commands)
    t.write("disk.raw", bytes(disk))


def compressed_clusters(t, image):
    return t.vise_img("check", "--output=json", image).json.get("compressed-clusters", 0)


@cases(way=FORMATS, base=[None, "base", "bottom"])
def a_chain_streams_into_its_top(t, way, base):
    make_chain(t, way)
    daemon = Daemon(t)
    daemon.execute("blockdev-add", node("top"))
    nodes = daemon.execute("query-named-block-nodes")
    by_file = {entry["file"]: entry["node-name"] for entry in nodes if entry["drv"] == "qcow2"}
    device = "top"
    if way != "plain":
        daemon.execute("blockdev-add", driver="compress", node_name="cmp", file="top")
        device = "cmp"
    where = {None: {}, "base": {"base-node": by_file["base.qcow2"]},
             "bottom": {"bottom": by_file["mid.qcow2"]}}[base]
    daemon.execute("block-stream", {"device": device, "job-id": "job", **where})
    done = daemon.qmp.wait_job("job")
    t.equal(done["event"], "BLOCK_JOB_COMPLETED")
    t.equal(done["data"]["offset"], SIZE)
    left = {entry["node-name"]: entry for entry in daemon.execute("query-named-block-nodes")}
    t.equal(left["top"].get("backing_file"), "base.qcow2" if base else None)
    t.check("mid.qcow2" not in {entry["file"] for entry in left.values()}, "mid is still open")
    daemon.quit()
    t.reads_as("top.qcow2", "disk.raw")
    t.sound("top.qcow2")
    info = t.qemu_img("info", "--output=json", "-U", "top.qcow2").json
    t.equal(info.get("backing-filename"), "base.qcow2" if base else None)
    if way != "plain" and not base:
        # As many as where all of it is compressed at once: noise is stored as it is.
        t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={way}", "disk.raw",
                   "reference.qcow2")
        t.equal(compressed_clusters(t, "top.qcow2"), compressed_clusters(t, "reference.qcow2"))


@cases(way=FORMATS, sync=["full", "top"])
def a_backup_is_a_copy(t, way, sync):
    make_chain(t, "zstd", names=("base", "top"))
    codec = "zlib" if way == "plain" else way
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("top"))
    more = {} if sync == "full" else {"backing-file": "base.qcow2", "backing-fmt": "qcow2"}
    for number, options in enumerate([
            {"driver": "file", "filename": "copy.qcow2", "size": 0},
            {"driver": "qcow2", "file": "copy-file", "size": SIZE, "compression-type": codec,
             **more}]):
        if number == 1:
            qmp.execute("blockdev-add", driver="file", node_name="copy-file",
                        filename="copy.qcow2")
        qmp.execute("blockdev-create", job_id="make", options=options)
        qmp.wait_event("JOB_STATUS_CHANGE", id="make", status="concluded")
        t.equal(qmp.execute("query-jobs")[0].get("error"), None)
        qmp.execute("job-dismiss", id="make")
    qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": "copy", "file": "copy-file",
                                 "backing": None})
    qmp.execute("blockdev-backup", job_id="job", device="top", target="copy", sync=sync,
                compress=way != "plain")
    qmp.wait_job("job")
    daemon.quit()
    t.reads_as("copy.qcow2", "disk.raw")
    t.sound("copy.qcow2")
    t.equal(compressed_clusters(t, "copy.qcow2") > 0, way != "plain")


@case
def an_image_can_be_created_in_another_one(t):
    """The new image's metadata end inside a sector; the disk around it has whole ones."""
    t.vise_img("create", "-f", "qcow2", "outer.qcow2", "8M")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("outer"))
    qmp.execute("blockdev-create", {"job-id": "make", "options": {
        "driver": "qcow2", "file": "outer", "size": SIZE}})
    qmp.wait_event("JOB_STATUS_CHANGE", id="make", status="concluded")
    t.equal(qmp.execute("query-jobs")[0].get("error"), None)
    qmp.execute("job-dismiss", id="make")
    daemon.quit()
    t.sound("outer.qcow2")
    inner = "driver=qcow2,file.driver=qcow2,file.file.filename=outer.qcow2"
    t.vise_img("check", "--image-opts", inner)
    for program in (t.vise_img, t.qemu_img):
        info = program("info", "--output=json", "--image-opts", inner).json
        t.equal((info["format"], info["virtual-size"]), ("qcow2", SIZE))


@cases(raw=[False, True])
def an_image_is_created_beside_a_data_file(t, raw):
    """The node keeps what it holds; with data-file-raw, that is the disk."""
    content = mixed_data(SIZE + 4096, 30 * KIB, 7) if raw else b"x" * 5000
    t.write("data", content)
    t.write("image.qcow2", b"")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", driver="file", node_name="image-file", filename="image.qcow2")
    qmp.execute("blockdev-add", driver="file", node_name="data", filename="data")
    arguments = {"driver": "qcow2", "file": "image-file", "size": SIZE}

    def create(options):
        qmp.execute("blockdev-create", {"job-id": "make", "options": {**arguments, **options}})
        qmp.wait_event("JOB_STATUS_CHANGE", id="make", status="concluded")
        error = qmp.execute("query-jobs")[0].get("error", "")
        qmp.execute("job-dismiss", id="make")
        return error

    inline = {"driver": "nbd", "server": {"type": "unix", "path": "/nowhere"}, "export": "x"}
    for options, part in [
            ({"data-file": "nowhere"}, "node-name='nowhere'"),
            ({"data-file": "image-file"}, "names the image itself"),
            ({"data-file": {"driver": "file", "filename": "image.qcow2"}}, "image.qcow2"),
            ({"data-file": {"driver": "null-co"}}, "cannot be a data file"),
            ({"data-file": {"driver": "raw", "offset": 512, "file": "data"}},
             "cannot be a data file"),
            ({"data-file": inline}, "/nowhere"),
            ({"data-file-raw": True}, "without data_file"),
            ({"data-file": "data", "version": "v2"}, "compat=1.1"),
            ({"data-file": "data", "data-file-raw": True, "backing-file": "b",
              "backing-fmt": "raw"}, "exclude each other")]:
        error = create(options)
        t.check(part in error, (options, error))
        t.equal(len(t.read("image.qcow2")), 0)
        t.equal(t.read("data"), content)
    t.equal(create({"data-file": "data", "data-file-raw": raw}), "")
    daemon.quit()
    for program in (t.vise_img, t.qemu_img):
        data = program("info", "--output=json", "image.qcow2").json["format-specific"]["data"]
        t.equal((data["data-file"], data["data-file-raw"]), ("data", raw))
        program("check", "image.qcow2")
    t.equal(len(t.read("data")), SIZE + 4096 if raw else SIZE)
    t.equal(t.read("data")[:len(content)], content)
    t.write("expected", content[:SIZE] if raw else bytes(SIZE))
    t.reads_as("image.qcow2", "expected")
    t.vise_io("-f", "qcow2", "image.qcow2", commands=["write -P 7 1M 64k"])
    t.equal(t.read("data")[MIB:MIB + 64 * KIB], b"\7" * 64 * KIB)


@cases(way=FORMATS, top=["mid", "top"])
def images_are_committed(t, way, top):
    make_chain(t, way)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("base", **{"read-only": True}))
    base = "base"
    if way != "plain":
        qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="base",
                    read_only=True)
        base = "cmp"
    qmp.execute("blockdev-add", node("mid", backing=base, **{"read-only": True}))
    qmp.execute("blockdev-add", node("top", backing="mid"))
    qmp.execute("block-commit", job_id="job", device="top", top_node=top, base_node=base)
    if top == "top":
        qmp.wait_event("BLOCK_JOB_READY", device="job")
        qmp.execute("job-complete", id="job")
    qmp.wait_job("job")
    nodes = {entry["node-name"]: entry for entry in qmp.execute("query-named-block-nodes")}
    if top == "mid":
        # Below a filter that has no plain name of its own.
        t.check("mid.qcow2" not in nodes["top"]["backing_file"], nodes["top"])
        t.check(nodes["base"]["ro"], "the base is read-only again")
    daemon.quit()
    t.sound("base.qcow2")
    t.reads_as("top.qcow2" if top == "mid" else "base.qcow2", "disk.raw")
    if top == "mid":
        info = t.qemu_img("info", "--output=json", "-U", "top.qcow2").json
        t.equal(info["backing-filename"], "base.qcow2")


@cases(way=FORMATS, mode=["background", "write-blocking"])
def a_mirror_takes_the_place_of_its_source(t, way, mode):
    make_chain(t, way)
    codec = "zlib" if way == "plain" else way
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "copy.qcow2", SIZE)
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("top"))
    qmp.execute("blockdev-add", node("copy"))
    target = "copy"
    if way != "plain":
        qmp.execute("blockdev-add", driver="compress", node_name="cmp", file="copy")
        target = "cmp"
    qmp.execute("blockdev-mirror", job_id="job", device="top", target=target, sync="full",
                copy_mode=mode)
    qmp.wait_event("BLOCK_JOB_READY", device="job")
    info = qmp.execute("query-block-jobs")[0]
    t.equal((info["ready"], info["actively-synced"]), (True, mode == "write-blocking"))
    t.check("busy" in qmp.fails("blockdev-backup", job_id="other", device="top",
                                target="copy", sync="full"), "one job at a time")
    qmp.execute("job-complete", id="job")
    qmp.wait_job("job")
    daemon.quit()
    t.reads_as("copy.qcow2", "disk.raw")
    t.sound("copy.qcow2")
    t.equal(compressed_clusters(t, "copy.qcow2") > 0, way != "plain")


def sequence(events, job):
    """The job's states, and its BLOCK_JOB_ events in capitals."""
    words = []
    for event in events:
        data = event.get("data", {})
        if data.get("id", data.get("device")) != job:
            continue
        if event["event"] == "JOB_STATUS_CHANGE":
            words.append(data["status"])
        else:
            words.append(event["event"].removeprefix("BLOCK_JOB_"))
    text = " ".join(words)
    while "running paused running" in text:  # QEMU pauses jobs while it changes the graph
        text = text.replace("running paused running", "running")
    return text


def run_steps(t, binary, start, steps):
    """Starts a job by `start` and gives it `steps`: (state to wait for, command, arguments)."""
    daemon = Daemon(t, "--blockdev", "driver=null-co,node-name=unused,size=1048576",
                    binary=binary, name=binary)
    qmp = daemon.qmp
    seen = []
    qmp.execute("blockdev-add", node("src", f"{binary}-top.qcow2"))
    qmp.execute("blockdev-add", node("dst", f"{binary}-copy.qcow2"))
    qmp.execute(*start)

    def wait(status):
        while True:
            event = qmp.events.pop(0) if qmp.events else qmp.message()
            if "event" in event:
                seen.append(event)
                if event.get("data", {}).get("status") == status:
                    return

    for status, command, arguments in steps:
        wait(status)
        qmp.execute(command, arguments)
    wait("null")
    daemon.quit()
    return sequence(seen, "job")


MIRROR = ("blockdev-mirror", {"job-id": "job", "device": "src", "target": "dst", "sync": "full"})
COMMIT = ("block-commit", {"job-id": "job", "device": "src"})
STREAM = ("block-stream", {"job-id": "job", "device": "src"})
SLOW = ("block-stream", {"job-id": "job", "device": "src", "speed": 1})
BACKUP = ("blockdev-backup", {"job-id": "job", "device": "src", "target": "dst", "sync": "full"})
BY_HAND = {"auto-finalize": False, "auto-dismiss": False}


@cases(steps=[
    ("stream", STREAM, []),
    ("backup", BACKUP, []),
    ("cancelled", SLOW, [("running", "job-cancel", {"id": "job"})]),
    ("softly cancelled", SLOW, [("running", "block-job-cancel", {"device": "job"})]),
    ("by hand", (BACKUP[0], {**BACKUP[1], **BY_HAND}),
     [("pending", "job-finalize", {"id": "job"}), ("concluded", "job-dismiss", {"id": "job"})]),
    ("mirror completed", MIRROR, [("ready", "job-complete", {"id": "job"})]),
    ("mirror left as a copy", MIRROR, [("ready", "block-job-cancel", {"device": "job"})]),
    ("mirror cancelled", MIRROR, [("ready", "job-cancel", {"id": "job"})]),
    ("active commit", COMMIT, [("ready", "job-complete", {"id": "job"})]),
    ("cancelled while pending", (STREAM[0], {**STREAM[1], **BY_HAND}),
     [("pending", "job-cancel", {"id": "job"}), ("concluded", "job-dismiss", {"id": "job"})]),
])
def jobs_go_through_the_states_that_qemu_knows(t, steps):
    _, start, then = steps
    for binary in ("vise", "qemu"):
        t.vise_img("create", "-f", "qcow2", f"{binary}-base.qcow2", str(SIZE))
        t.vise_io("-f", "qcow2", f"{binary}-base.qcow2", commands=["write -P 1 0 8M"])
        t.vise_img("create", "-f", "qcow2", "-F", "qcow2", "-b", f"{binary}-base.qcow2",
                   f"{binary}-top.qcow2")
        t.vise_img("create", "-f", "qcow2", f"{binary}-copy.qcow2", str(SIZE))
    t.equal(run_steps(t, "vise", start, then), run_steps(t, "qemu", start, then))


@case
def bad_arguments_start_nothing(t):
    make_chain(t, "plain")
    t.vise_img("create", "-f", "qcow2", "small.qcow2", "1M")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("top"))
    qmp.execute("blockdev-add", node("small"))
    before = qmp.execute("query-named-block-nodes")
    for name, arguments, text in [
        ("block-stream", {"device": "top"}, "Invalid job ID ''"),
        ("block-stream", {"device": "top", "job-id": "1"}, "Invalid job ID '1'"),
        ("block-stream", {"device": "nope", "job-id": "j"}, "Cannot find device='nope'"),
        ("block-stream", {"device": "top", "job-id": "j", "base": "nope"}, "Can't find 'nope'"),
        ("block-stream", {"device": "top", "job-id": "j", "base-node": "small"}, "not a backing"),
        ("block-stream", {"device": "top", "job-id": "j", "speed": -1}, "speed"),
        ("block-stream", {"device": "top", "job-id": "j", "backing-file": "x"}, "entire chain"),
        ("blockdev-backup", {"device": "top", "target": "small", "sync": "full", "job-id": "j"},
         "1048576"),
        ("blockdev-backup", {"device": "top", "target": "top", "sync": "full", "job-id": "j"},
         "same"),
        ("blockdev-backup", {"device": "top", "target": "small", "sync": "incremental",
                             "job-id": "j"}, ""),
        ("job-cancel", {"id": "j"}, "Job not found"),
        ("block-job-cancel", {"device": "j"}, "DeviceNotActive"),
        ("blockdev-create", {"job-id": "j", "options": {"driver": "null-co"}}, "null-co"),
    ]:
        t.check(text in qmp.fails(name, arguments), f"{name} {arguments}")
    t.equal(qmp.execute("query-jobs"), [])
    t.equal(qmp.execute("query-named-block-nodes"), before)
    daemon.quit()


@case
def a_daemon_that_ends_cancels_its_jobs(t):
    make_chain(t, "plain")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", node("top"))
    qmp.execute("block-stream", device="top", job_id="job", speed=1)
    qmp.execute("quit")
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="job")
    daemon.wait()
    t.reads_as("top.qcow2", "disk.raw")
    t.sound("top.qcow2")


main()
