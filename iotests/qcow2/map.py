# groups: rw auto
"""`map` tells the same as qemu-img's, holes inside preallocated clusters and all."""
from vise_iotest import *

# (creation options, backing image: its share of the size and options, or None)
IMAGES = {
    "plain": ("cluster_size=4k", None),
    "version 2": ("compat=0.10", None),
    "metadata": ("preallocation=metadata", None),
    "metadata, small clusters": ("preallocation=metadata,cluster_size=512", None),
    "metadata, large clusters": ("preallocation=metadata,cluster_size=2M", None),
    "falloc": ("preallocation=falloc", None),
    "full": ("preallocation=full", None),
    "subclusters": ("extended_l2=on", None),
    "metadata, subclusters": ("preallocation=metadata,extended_l2=on", None),
    "data file": ("data_file=a.data", None),
    "data file, small clusters": ("data_file=a.data,cluster_size=512", None),
    "data file, metadata, subclusters": ("data_file=a.data,preallocation=metadata,extended_l2=on", None),
    "raw data file": ("data_file=a.data,data_file_raw=on", None),
    "backing": ("cluster_size=64k", (1, "preallocation=metadata")),
    "short backing": ("cluster_size=64k", (0.5, "preallocation=metadata,cluster_size=4k")),
    "metadata, subclusters, backing": ("preallocation=metadata,extended_l2=on", (0.5, "extended_l2=on")),
}


def cluster_size_of(options):
    return {"512": 512, "4k": 4 * KIB, "2M": 2 * MIB}.get(
        dict(option.split("=") for option in options.split(",")).get("cluster_size"), 64 * KIB)


def random_commands(source, size, unit, count):
    """Writes of all kinds, of all lengths, most of them parts of clusters."""
    for _ in range(count):
        at = source.randrange(0, size - 512) // 512 * 512
        length = min(size - at, source.choice([512, 4 * KIB, unit, 3 * unit]))
        kind = source.choice(["write -P 5"] * 4 + ["write -z", "write -z -u", "discard", "write -c"])
        if kind == "write -c":
            at, length = at // unit * unit, min(unit, size - at // unit * unit)
        yield f"{kind} {at} {length}"


def compare_maps(t, image, what):
    t.equal(t.map_of("vise_img", image), t.map_of("qemu_img", image), f"maps {what}")
    ours, theirs = (program("map", image, code=(0, 1)) for program in (t.vise_img, t.qemu_img))
    if theirs.code == 0:  # else there are compressed clusters, which both refuse here
        t.equal(ours.stdout, theirs.stdout, f"human maps {what}")
    t.equal(ours.code, theirs.code, "exit status")


@cases(image=list(IMAGES), seed=range(3))
def partly_written_images(t, image, seed):
    installed("qemu-img")
    options, backing = IMAGES[image]
    source = random.Random(f"{image} {seed}")
    unit = cluster_size_of(options)
    size = source.choice([10, 30]) * unit + source.choice([0, 1536])
    more = []
    if backing:
        share, backing_options = backing
        length = int(size * share) // 512 * 512
        t.qemu_img("create", "-f", "qcow2", "-o", backing_options, "b.qcow2", length)
        t.qemu_io("-f", "qcow2", "b.qcow2", code=(0, 1),
                  commands=list(random_commands(source, length, 64 * KIB, 4)))
        more = ["-b", "b.qcow2", "-F", "qcow2"]
    t.qemu_img("create", "-f", "qcow2", "-o", options, *more, "a.qcow2", size)
    compare_maps(t, "a.qcow2", "of the new image")
    for program in (t.qemu_io, t.vise_io, t.qemu_io):
        program("-d", "unmap", "-f", "qcow2", "a.qcow2", code=(0, 1),
                commands=list(random_commands(source, size, unit, 6)))
        compare_maps(t, "a.qcow2", "after writing")


@case
def holes_are_told_where_the_file_is_smaller_than_its_counts_by_a_tenth(t):
    """The limit from which on qemu-img looks for holes, to the cluster."""
    installed("qemu-img")
    looked = set()
    for total in (10, 40, 100):
        for written in range(total - 10, total + 1):
            t.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "a.qcow2",
                       total * 64 * KIB)
            if written:
                t.qemu_io("-f", "qcow2", "a.qcow2", commands=[f"write -q 0 {written * 64}k"])
            compare_maps(t, "a.qcow2", f"with {written} of {total} clusters written")
            looked.add(any(entry["zero"] for entry in t.map_of("vise_img", "a.qcow2")))
    t.equal(looked, {True, False}, "whether holes are told")


main()
