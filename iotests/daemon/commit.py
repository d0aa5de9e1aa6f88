"""block-commit with images named by their files: the same as QEMU, header and content."""
from qmp import Daemon, QmpError
from vise_iotest import KIB, MIB, case, cases, main

SIZE = 2 * MIB
TOP = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "top.qcow2"}}


def make_chain(t, folder=""):
    """base ← low ← mid ← top, each with a stretch of its own; `disk.raw` is what top shows."""
    names = ["base", "low", "mid", "top"]
    for number, name in enumerate(names):
        backing = ["-b", f"{names[number - 1]}.qcow2", "-F", "qcow2"] if number else []
        t.vise_img("create", "-q", "-f", "qcow2", *backing, f"{folder}{name}.qcow2", str(SIZE))
        t.vise_io("-f", "qcow2", f"{folder}{name}.qcow2",
                  commands=[f"write -q -P {number + 1} {number * 256}k 512k"])
    t.vise_img("convert", "-O", "raw", f"{folder}top.qcow2", "disk.raw")


def outcome(t, binary, arguments):
    """The error's text, or what the daemon has done to the chain."""
    make_chain(t)
    t.path("other-name.qcow2").unlink(missing_ok=True)
    t.path("other-name.qcow2").hardlink_to(t.path("base.qcow2"))
    daemon = Daemon(t, binary=binary, name=binary)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", TOP)
    absolute = {key: str(t.path(value[1:])) if value.startswith("@") else value
                for key, value in arguments.items()}
    try:
        qmp.execute("block-commit", {"job-id": "j", "device": "disk", **absolute})
    except QmpError as error:
        daemon.quit()
        return f"{error.class_name}: {error}"
    ready = False
    while True:
        event = qmp.events.pop(0) if qmp.events else qmp.message()
        if event["event"] == "BLOCK_JOB_READY":
            ready = True
            qmp.execute("job-complete", id="j")
        if event["event"] == "BLOCK_JOB_COMPLETED":
            break
    qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    error = event["data"].get("error")
    daemon.quit()
    for name in ("base", "low", "mid", "top"):
        t.qemu_img("check", f"{name}.qcow2")
    last = absolute.get("base", "base.qcow2").rpartition("/")[2]
    if not (ready and error is None):
        last = "top.qcow2"
    t.qemu_img("compare", "-f", "qcow2", "-F", "raw", last, "disk.raw")
    infos = [t.qemu_img("info", "--output=json", f"{name}.qcow2").json for name in ("top", "mid")]
    return error, ready, [(info.get("backing-filename"), info.get("backing-filename-format"))
                          for info in infos]


@cases(arguments=[
    {"top": "mid.qcow2"}, {"top": "@mid.qcow2"}, {"base": "low.qcow2"}, {"base": "@low.qcow2"},
    {"top": "mid.qcow2", "base": "low.qcow2"}, {"top": "low.qcow2"},
    {"top": "mid.qcow2", "backing-file": "other-name.qcow2"},
    {"top": "low.qcow2", "backing-file": "@base.qcow2"},
    {"top": "top.qcow2"}, {"top": "top.qcow2", "backing-file": "x"}, {"backing-file": "x"},
    {"top": "nope"}, {"base": "nope"}, {"top": "base.qcow2"}, {"top": "low.qcow2", "base": "mid.qcow2"},
    {"top": "mid.qcow2", "base": "mid.qcow2"}, {"base": "low.qcow2", "base-node": "disk"},
    {"top": "low.qcow2", "top-node": "disk"},
])
def images_named_by_their_files(t, arguments):
    ours, theirs = outcome(t, "vise", arguments), outcome(t, "qemu", arguments)
    if isinstance(ours, str) and isinstance(theirs, str):
        t.equal(ours.partition(":")[0], theirs.partition(":")[0], "class of the error")
        return
    t.equal(ours, theirs)


@case
def names_count_as_the_images_store_them(t):
    t.path("sub").mkdir()
    make_chain(t, "sub/")
    daemon = Daemon(t)
    qmp = daemon.qmp
    qmp.execute("blockdev-add", {**TOP, "file": {"driver": "file", "filename": "sub/top.qcow2"}})
    qmp.execute("block-commit", job_id="j", device="disk", top="mid.qcow2", base="low.qcow2")
    qmp.wait_job("j")
    qmp.execute("block-stream", job_id="s", device="disk", base="base.qcow2")
    qmp.wait_job("s")
    daemon.quit()
    t.sound("sub/top.qcow2")
    t.reads_as("sub/top.qcow2", "disk.raw")
    info = t.qemu_img("info", "--output=json", "sub/top.qcow2").json
    t.check(info["full-backing-filename"].endswith("sub/base.qcow2"), info)


main()
