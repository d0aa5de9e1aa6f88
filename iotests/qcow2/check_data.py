# groups: rw auto
"""`check --data` decodes every compressed cluster: what it counts, what it says of damage, and that
no flipped bit of a cluster with a checksum stays unnoticed. QEMU reads the unflipped images."""
from vise_iotest import *


def make(t, codec, size=2 * MIB, cluster_size=64 * KIB, program="vise_img", seed=1):
    t.write("raw", mixed_data(size, cluster_size, seed))
    getattr(t, program)("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                        f"compression_type={codec},cluster_size={cluster_size}", "raw", "a.qcow2")


def data_of(t, image="a.qcow2", code=0):
    return t.vise_img("check", "--data", "--output=json", image, code=code).json


def stored_extents(t, image="a.qcow2", cluster_size=64 * KIB):
    """(guest offset, host offset, bytes at most) of every compressed cluster, from the L2 tables."""
    data = t.read(image)
    bits = cluster_size.bit_length() - 1
    word = lambda offset: int.from_bytes(data[offset:offset + 8], "big")  # noqa: E731
    found = []
    for index in range(int.from_bytes(data[36:40], "big")):
        table = word(word(40) + index * 8) & 0x00fffffffffffe00
        for entry in range(cluster_size // 8) if table else []:
            value = word(table + entry * 8)
            if value >> 62 & 1:
                host = value & (1 << (70 - bits)) - 1
                sectors = value >> (70 - bits) & (1 << (bits - 8)) - 1
                guest = (index * (cluster_size // 8) + entry) * cluster_size
                found.append((guest, host, (sectors + 1) * 512 - host % 512))
    return found


@cases(codec=CODECS, cluster_size=[4 * KIB, 64 * KIB, 2 * MIB])
def sound_images(t, codec, cluster_size):
    make(t, codec, max(2 * MIB, 6 * cluster_size) + 512, cluster_size)
    t.reads_as("a.qcow2", "raw")
    found = data_of(t)
    count = found["compressed-clusters"]
    t.check(count > 0, found)
    t.equal(found["data"], {"clusters": count, "with-checksum": count, "damaged": 0,
                            "damaged-clusters": []}, "data")
    human = t.vise_img("check", "--data", "a.qcow2").stdout
    t.check(f"{count} compressed clusters decoded, {count} of them with a checksum" in human, human)
    t.check("No errors were found" in human, human)
    t.check("data" not in t.vise_img("check", "--output=json", "a.qcow2").json, "only if asked for")


@cases(codec=CODECS)
def images_that_qemu_made_carry_no_checksums(t, codec):
    make(t, codec, program="qemu_img")
    found = data_of(t)
    t.equal((found["data"]["with-checksum"], found["data"]["damaged"]), (0, 0), "data")
    t.equal(found["data"]["clusters"], found["compressed-clusters"], "clusters")


@cases(codec=CODECS)
def damage_is_named_and_nothing_else(t, codec):
    make(t, codec)
    extents = stored_extents(t)
    chosen = sorted(extents, key=lambda extent: extent[2])[-2:]
    for guest, host, length in chosen:
        t.patch("a.qcow2", host + length // 3, b"\xa5\x5a\xa5\x5a")
    found = data_of(t, code=2)
    t.equal(found["data"]["damaged"], 2, "damaged clusters")
    t.equal(sorted((entry["guest-offset"], entry["host-offset"]) for entry in
                   found["data"]["damaged-clusters"]), sorted(extent[:2] for extent in chosen), "places")
    t.equal(found.get("corruptions", 0), 0, "corruptions of the metadata")
    human = t.vise_img("check", "--data", "a.qcow2", code=2)
    t.check("2 compressed clusters are damaged" in human.stdout, human)
    t.check("No errors" not in human.stdout, human)
    for guest, host, _ in chosen:
        t.check(f"guest offset {guest:#x} at host offset {host:#x} is damaged" in human.stderr, human)
    t.vise_img("check", "a.qcow2")  # does not look at data
    t.vise_img("check", "-r", "all", "--data", "a.qcow2", code=2)  # nobody can mend that


@cases(codec=CODECS)
def no_flipped_bit_is_silent(t, codec):
    """Flips from end to end of one cluster; tests/unit/qcow2_check_data_test.cc flips every bit."""
    make(t, codec, 5 * 4 * KIB, 4 * KIB, seed=3)
    extents = stored_extents(t, cluster_size=4 * KIB)
    t.reads_as("a.qcow2", "raw")
    guest, host, length = max(extents[:-1], key=lambda extent: extent[2])
    stored = min((other[1] for other in extents if other[1] > host), default=host + length) - host
    original = t.read("a.qcow2")
    source = random.Random(5)
    for _ in range(120):
        bit = source.randrange(min(stored, length) * 8)
        flipped = bytes([original[host + bit // 8] ^ 1 << bit % 8])
        t.patch("a.qcow2", host + bit // 8, flipped)
        damaged = data_of(t, code=(0, 2))["data"]["damaged"]
        if not damaged:  # in padding: then it must not matter
            t.vise_img("compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "raw")
        t.patch("a.qcow2", host + bit // 8, original[host + bit // 8:][:1])
    t.equal(data_of(t)["data"]["damaged"], 0, "damaged after all flips are undone")


@case
def clusters_of_snapshots_are_checked_too(t):
    make(t, "zlib", MIB)
    extents = stored_extents(t)
    t.vise_img("snapshot", "-c", "one", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"write -P 1 0 {MIB}"])
    t.equal(data_of(t)["data"]["clusters"], len(extents), "clusters")
    t.patch("a.qcow2", extents[0][1] + 30, b"\x00\xff\x00\xff")
    entry, = data_of(t, code=2)["data"]["damaged-clusters"]
    t.equal((entry["guest-offset"], entry["in-snapshot"]), (extents[0][0], True), "damage")


@case
def a_check_of_the_metadata_has_progress_too(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "8M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 0 8M"])
    for repair in ([], ["-r", "all"]):
        shown = t.vise_img("check", "-p", *repair, "a.qcow2").stdout
        steps = [float(step) for step in re.findall(r"    \(([\d.]+)/100%\)\r", shown)]
        t.check(len(steps) > 50 and steps == sorted(steps) and (steps[0], steps[-1]) == (0, 100), shown)
        t.check("No errors were found" in shown, shown)
    in_json = t.vise_img("check", "-p", "--output=json", "a.qcow2")
    t.check(in_json.json["total-clusters"] == 16384 and "(100.00/100%)" in in_json.stderr, in_json)
    t.equal(t.vise_img("check", "-p", "-q", "a.qcow2").output, "", "output with -q")


@case
def progress_and_what_is_refused(t):
    make(t, "zlib", 8 * MIB)
    shown = t.vise_img("check", "--data", "-p", "a.qcow2").stdout
    t.check("(100.00/100%)" in shown and shown.count("/100%)") > 2, shown)
    json_too = t.vise_img("check", "--data", "-p", "--output=json", "a.qcow2")
    t.check("(100.00/100%)" in json_too.stderr and json_too.json["data"]["damaged"] == 0, json_too)
    t.vise_img("check", "--data", "-f", "raw", "raw", code=63)


main()
