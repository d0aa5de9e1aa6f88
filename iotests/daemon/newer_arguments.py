"""Arguments that the QEMU at hand does not know yet, since they are of versions 8 to 10."""
from qmp import Daemon
from vise_iotest import KIB, MIB, cases, main, mixed_data

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


main()
