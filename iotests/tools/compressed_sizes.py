# groups: quick auto
"""How much space compression takes or would take: measure -c, and the stored lengths in map."""
import struct

from vise_iotest import *


def real_size(t, source, options):
    t.vise_img("convert", "-c", "-O", "qcow2", *options, source, "real.qcow2")
    return t.path("real.qcow2").stat().st_size


@cases(options=["", "-o cluster_size=4k", "-o cluster_size=512", "-o cluster_size=2M",
                "-o compression_type=zstd", "-o compression_type=zstd,cluster_size=8k,refcount_bits=64",
                "-o extended_l2=on", "--level 12", "--level fastest"])
def a_small_image_is_measured_but_for_its_last_clusters(t, options):
    """Where clusters that do not shrink stand between others, and where the file ends, gaps are left."""
    t.write("raw", mixed_data(MIB if "=512" in options else 3 * MIB, 30 * KIB, 4)[:-KIB])
    options = options.split()
    told = t.vise_img("measure", "-c", "--output=json", "-O", "qcow2", *options, "raw").json
    t.equal(told["compressed-size-error"], 0, "error")
    t.equal(told["sampled-clusters"], told["data-clusters"], "clusters")
    difference = abs(told["compressed-size"] - real_size(t, "raw", options))
    cluster = t.vise_img("info", "--output=json", "real.qcow2").json["cluster-size"]
    t.check(difference <= (2 * cluster if cluster < 64 * KIB else 0), f"off by {difference} bytes")


@cases(codec=CODECS)
def a_sample_tells_the_size_within_its_error(t, codec):
    t.write("raw", mixed_data(48 * MIB, 30 * KIB, 6))
    options = ["-o", f"cluster_size=4k,compression_type={codec}"]
    first = t.vise_img("measure", "-c", "-O", "qcow2", *options, "raw").stdout
    told = t.vise_img("measure", "-c", "--output=json", "-O", "qcow2", *options, "raw").json
    t.check(told["data-clusters"] > told["sampled-clusters"] == 2048, told)
    real = real_size(t, "raw", options)
    t.check(0 < told["compressed-size-error"] < real // 5, told)
    # The error is that of 95 %; twice as much is one in ten thousand (and the choice is always the same).
    t.check(abs(told["compressed-size"] - real) <= 2 * told["compressed-size-error"], f"{told}, really {real}")
    t.equal(first.splitlines()[-3:],
            [f"compressed size: {told['compressed-size']}",
             f"compressed size error: {told['compressed-size-error']}",
             f"sampled clusters: 2048/{told['data-clusters']}"], "human form")


@case
def what_the_source_is_made_of_does_not_matter(t):
    """Compressed, in a chain, in a snapshot: the content counts."""
    t.write("raw", mixed_data(4 * MIB, 30 * KIB, 8))
    # A level that is named shrinks every cluster here: the size is known to the byte.
    level = ["--level", "2"]
    size = real_size(t, "raw", level)
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", "raw", "small.qcow2")
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "small.qcow2", "-F", "qcow2", "top.qcow2")
    t.vise_img("convert", "-O", "qcow2", "raw", "snap.qcow2")
    t.vise_img("snapshot", "-c", "then", "snap.qcow2")
    t.vise_io("-f", "qcow2", "snap.qcow2", commands=["write -z 0 4M"])
    for arguments in (["small.qcow2"], ["top.qcow2"], ["-l", "then", "snap.qcow2"]):
        told = t.vise_img("measure", "-c", "--output=json", "-O", "qcow2", *level, *arguments).json
        t.equal(told["compressed-size"], size, arguments)
    empty = t.vise_img("measure", "-c", "--output=json", "-O", "qcow2", "snap.qcow2").json
    t.equal((empty["data-clusters"], empty["sampled-clusters"]), (0, 0), "clusters of an empty disk")


@cases(arguments=["-c --size 1M -O qcow2", "-c -O raw raw", "--level 3 -O qcow2 raw",
                  "-c --level 20 -O qcow2 raw", "-c --level 13 -O qcow2 raw"])
def what_cannot_be_estimated_is_refused(t, arguments):
    t.write("raw", bytes(MIB))
    refused = t.vise_img("measure", *arguments.split(), code=1)
    t.fails_clearly(refused)
    t.equal(refused.stdout, "", "output")


@case
def without_c_nothing_is_added(t):
    t.write("raw", mixed_data(MIB, 30 * KIB, 4))
    t.equal(list(t.vise_img("measure", "--output=json", "-O", "qcow2", "raw").json),
            ["required", "fully-allocated"], "members")


def stored_lengths(t, name):
    """By guest cluster of the only L2 table: how far the entry lets a reader read."""
    data = t.read(name)
    bits, = struct.unpack(">I", data[20:24])
    l1, = struct.unpack(">Q", data[40:48])
    table = struct.unpack(">Q", data[l1:l1 + 8])[0] & 0x00fffffffffffe00
    found = {}
    shift = 62 - (bits - 8)
    for index in range(2 ** bits // 8):
        entry, = struct.unpack(">Q", data[table + 8 * index:table + 8 * index + 8])
        if entry >> 62 & 1:
            offset = entry & (1 << shift) - 1
            found[index] = (entry >> shift & (1 << 62 - shift) - 1) * 512 + 512 - offset % 512
    return found


@case
def map_tells_the_stored_length_of_compressed_extents(t):
    t.write("raw", mixed_data(2 * MIB, 30 * KIB, 4))
    t.vise_img("convert", "-c", "-O", "qcow2", "raw", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 640k 64k", "write -z 1M 128k"])
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2")
    lengths = stored_lengths(t, "a.qcow2")
    for name in ("a.qcow2", "top.qcow2"):
        entries = t.vise_img("map", "--output=json", name).json
        t.check(any(entry["compressed"] for entry in entries), entries)
        for entry in entries:
            t.equal("stored-length" in entry, entry["compressed"], f"member of {entry}")
            if not entry["compressed"]:
                continue
            first, end = entry["start"] // 65536, (entry["start"] + entry["length"]) // 65536
            t.equal(entry["stored-length"], sum(lengths[i] for i in range(first, end)), entry)
    part = t.vise_img("map", "--output=json", "-s", "70000", "-l", "512", "a.qcow2").json
    t.equal([entry.get("stored-length") for entry in part], [lengths.get(1)], "part of a cluster")


main()
