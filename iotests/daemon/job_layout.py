"""What a job makes of a source that nobody writes to is the same file, byte for byte, however many
workers there are and whoever is done first."""
from qmp import Daemon
from vise_iotest import CODECS, KIB, MIB, cases, main, mixed_data

SIZE = 24 * MIB
WORKERS = (1, 4, 4, 2, 4)


def qcow2(name, **more):
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


def make_sources(t, codec):
    """source, plain; base <- mid, compressed, with parts of clusters written anew."""
    t.write("source.raw", mixed_data(SIZE, 64 * KIB, 11))
    options = ["-o", f"compression_type={codec}"]
    t.vise_img("convert", "-O", "qcow2", "source.raw", "source.qcow2")
    t.vise_img("convert", "-c", "-O", "qcow2", *options, "source.raw", "base.qcow2")
    t.vise_img("create", "-f", "qcow2", *options, "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2")
    t.vise_io("-f", "qcow2", "mid.qcow2",
              commands=[f"write -q -P {i} {i * 777}k {i % 5 * 60 + 9}k" for i in range(1, 31)])
    t.vise_img("convert", "-O", "raw", "mid.qcow2", "mid.raw")


def run(t, job, codec):
    """Runs the job on a fresh target; the image that it has made, and what that must hold."""
    options = ["-o", f"compression_type={codec}"]
    for name in ("target", "top", "below"):
        t.path(f"{name}.qcow2").unlink(missing_ok=True)
    t.vise_img("create", "-f", "qcow2", *options, "target.qcow2", str(SIZE))
    t.vise_img("create", "-f", "qcow2", *options, "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    daemon = Daemon(t)
    qmp = daemon.qmp
    kind, _, filtered = job.partition(" into ")
    made, expected = "target.qcow2", "source.raw"
    if kind == "stream":
        qmp.execute("blockdev-add", qcow2("top"))
        target, made, expected = "top", "top.qcow2", "mid.raw"
    elif kind == "commit":  # mid into an empty image, whose file it is told to use
        qmp.execute("blockdev-add", qcow2("target"))
        qmp.execute("blockdev-add", qcow2("mid", backing="target", **{"read-only": True}))
        qmp.execute("blockdev-add", qcow2("top", backing="mid"))
        target, expected = "target", None
    else:
        qmp.execute("blockdev-add", qcow2("source", **{"read-only": True}))
        qmp.execute("blockdev-add", qcow2("target"))
        target = "target"
    if filtered:
        qmp.execute("blockdev-add", driver="compress", node_name="filter", file=target)
        target = "filter"
    if kind == "stream":
        qmp.execute("block-stream", job_id="j", device=target)
    elif kind == "commit":
        qmp.execute("block-commit", job_id="j", device="top", top_node="mid", base_node=target)
    elif kind == "mirror":
        qmp.execute("blockdev-mirror", job_id="j", device="source", target=target, sync="full")
        qmp.wait_event("BLOCK_JOB_READY", device="j")
        qmp.execute("job-complete", id="j")
    else:
        qmp.execute("blockdev-backup", job_id="j", device="source", target=target, sync="full",
                    compress=kind == "backup, compressed")
    qmp.wait_job("j")
    daemon.quit()
    t.sound(made)
    if expected:
        t.reads_as(made, expected)
    return t.digest(made)


@cases(job=["backup", "backup, compressed", "backup into a filter", "mirror", "mirror into a filter",
            "stream", "stream into a filter", "commit"], codec=CODECS)
def the_layout_is_always_the_same(t, job, codec):
    make_sources(t, codec)
    digests = []
    for workers in WORKERS:
        t.env["VISE_WORKERS"] = str(workers)
        digests.append(run(t, job, codec))
    t.equal(len(set(digests)), 1, f"files: {dict(zip(WORKERS, digests))}")


main()
