# groups: rw auto
"""Options of an open image that decide about discards and caches, told from what they lead to."""
import time

from vise_iotest import *


def opened(*options):
    return ",".join(["driver=qcow2", "file.filename=a.qcow2", *options])


def make(t, *more):
    t.vise_img("create", "-q", "-f", "qcow2", *more, "a.qcow2", "8M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 4M"])
    return t.allocated("a.qcow2")


def allocated_clusters(t):
    return t.vise_img("check", "--output=json", "a.qcow2").json.get("allocated-clusters", 0)


@cases(options=["discard=unmap", "discard=unmap,pass-discard-request=off", "discard=ignore",
                "discard=unmap,pass-discard-request=on"], program=["vise_io", "qemu_io"])
def discards_of_the_guest_reach_the_file(t, options, program):
    before = make(t)
    getattr(t, program)("--image-opts", opened(options), commands=["discard 0 2M", "read -P 1 2M 2M"])
    gone = before - t.allocated("a.qcow2")
    passed = "unmap" in options and "request=off" not in options
    t.check(gone >= 2 * MIB - 64 * KIB if passed else gone <= 64 * KIB, f"{gone} bytes gone")
    t.equal(allocated_clusters(t), 64 if "ignore" in options else 32, "clusters left")
    t.sound("a.qcow2")


@cases(option=["on", "off"])
def what_a_snapshot_held_reaches_the_file(t, option):
    make(t)
    t.vise_img("snapshot", "-c", "s", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 2 0 4M"])
    before = t.allocated("a.qcow2")
    t.vise_img("snapshot", "--image-opts", "-d", "s", opened(f"pass-discard-snapshot={option}"))
    gone = before - t.allocated("a.qcow2")
    t.check(gone >= 4 * MIB - 64 * KIB if option == "on" else gone <= 64 * KIB, f"{gone} bytes gone")
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 2 0 4M"])


@cases(option=["on", "off"])
def what_is_freed_otherwise_reaches_the_file(t, option):
    before = make(t)
    # Compressed writes take the place of normal clusters, which are freed.
    t.vise_io("--image-opts", opened(f"pass-discard-other={option}"),
              commands=[f"write -q -c -P 7 {i * 64}k 64k" for i in range(64)] + ["flush"])
    gone = before - t.allocated("a.qcow2")
    t.check(gone >= 3 * MIB if option == "on" else gone <= 64 * KIB, f"{gone} bytes gone")
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 7 0 4M"])


@cases(command=["discard 1M 1M", "write -z -u 1M 1M"], passed=["on", "off"])
def clusters_stay_ours_with_discard_no_unref(t, command, passed):
    before = make(t)
    length = t.path("a.qcow2").stat().st_size
    t.vise_io("-d", "unmap", "--image-opts",
              opened("discard=unmap", "discard-no-unref=on", f"pass-discard-request={passed}"),
              commands=[command, "read -P 0 1M 1M", "read -P 1 0 1M", "read -P 1 2M 2M"])
    t.equal(allocated_clusters(t), 64, "clusters owned")
    gone = before - t.allocated("a.qcow2")
    t.check(gone >= MIB - 64 * KIB if passed == "on" else gone <= 64 * KIB, f"{gone} bytes gone")
    t.sound("a.qcow2")
    entry = next(e for e in t.map_of("vise_img", "a.qcow2") if e["start"] == MIB)
    t.equal((entry["zero"], entry["data"], "offset" in entry), (True, False, True), "map")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 5 1M 1M", "read -P 5 1M 1M"])
    t.equal(t.path("a.qcow2").stat().st_size, length, "length of the file")
    t.sound("a.qcow2")


def second_load_fails(interval):
    return ",".join(["driver=qcow2", f"cache-clean-interval={interval}", "file.driver=blkdebug",
                     "file.image.filename=a.qcow2", "file.set-state.0.event=l2_load",
                     "file.set-state.0.state=1", "file.set-state.0.new_state=2",
                     "file.inject-error.0.event=l2_load", "file.inject-error.0.state=2"])


@cases(interval=[0, 1, 600])
def unused_tables_are_dropped_after_the_interval(t, interval):
    """A table that was dropped must be loaded again, which fails here."""
    make(t)
    done = t.vise_io("-r", "--image-opts", second_load_fails(interval), code=1 if interval == 1 else 0,
                     commands=["read -q 0 64k", "read -q 64k 64k", "sleep 2500", "read -q 128k 64k"])
    t.equal("read failed" in done.output, interval == 1, "whether the table was loaded again")


def loads_a_table(t, option, before, request):
    """Whether a read, after the commands `before`, makes the image load a table."""
    opts = f"driver=qcow2,{option},file.driver=blkdebug,file.image.filename=a.qcow2"
    done = t.vise_io("-r", "--image-opts", opts, code=None, commands=[
        *before, "break l2_load A", f"aio_read {request}", "sleep 100", "resume A", "aio_flush"])
    t.check("Pattern verification failed" not in done.stdout and "read " in done.stdout, done)
    return "Suspended request 'A'" in done.stdout


# 160 L2 tables of 512 bytes are read, then the first one again.
@cases(options=[("l2-cache-size=64k", True), ("l2-cache-size=96k", False), ("cache-size=64k", True),
                ("cache-size=128k", False), ("cache-size=128k,refcount-cache-size=64k", True),
                ("l2-cache-size=64k,cache-size=10M", True), ("cache-clean-interval=0", False)])
def the_cache_of_l2_tables_has_its_size(t, options):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "8M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 8M"])
    tables = [f"read -q -P 1 {i * 32}k 512" for i in range(160)]
    found = loads_a_table(t, options[0], tables, "-P 1 0 512")
    t.equal(found, options[1], "whether the first table was loaded again")


@cases(options=[("l2-cache-entry-size=512", True), ("l2-cache-entry-size=4k", True),
                ("l2-cache-entry-size=8k", False), ("l2-cache-entry-size=64k", False)])
def a_table_is_loaded_in_parts_of_the_entry_size(t, options):
    make(t)  # entries 0 to 63 of a table of 64 KiB
    t.vise_img("resize", "-q", "a.qcow2", "512M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 2 48M 64k"])  # entry 768, at byte 6144
    found = loads_a_table(t, options[0], ["read -q -P 1 0 64k"], "-P 2 48M 64k")
    t.equal(found, options[1], "whether another part was loaded")


# Some 300 refcount blocks of 512 bytes are looked at for free space, then the first one again: what is
# discarded at the start of the disk is counted there.
@cases(options=[("refcount-cache-size=64k", True), ("refcount-cache-size=256k", False),
                ("cache-size=256k", True), ("cache-size=1M", False),
                ("cache-size=1M,l2-cache-size=960k", True), ("l2-cache-size=64k", False)])
def the_cache_of_refcounts_has_its_size(t, options):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", "a.qcow2", "9M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 8M"])
    second_load_fails = ",".join([
        "driver=qcow2", options[0], "discard=unmap", "file.driver=blkdebug",
        "file.image.filename=a.qcow2", "file.set-state.0.event=cluster_free",
        "file.set-state.0.state=1", "file.set-state.0.new_state=2",
        "file.inject-error.0.event=refblock_load", "file.inject-error.0.state=2"])
    done = t.vise_io("--image-opts", second_load_fails, code=None, commands=[
        "write -q -P 2 8M 64k", "flush", "discard -q 0 512", "flush"])
    t.equal("injected" in done.stderr, options[1], "whether the first block was loaded again")
    t.vise_img("check", "a.qcow2", code=3 if options[1] else 0)


def memory(process):
    """What the process takes up, in KiB."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1])


def reads_all_tables(process):
    """25 MiB of L2 tables, in slices of 16 KiB."""
    for start in range(0, 200 * 1024, 128):
        process.command_line(f"read -q {start}M 512")


@case
def caches_take_up_the_memory_they_are_given_and_no_more(t):
    if os.environ.get("VISE_SANITIZED"):
        raise Skip("AddressSanitizer keeps what is freed")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "a.qcow2", "200G")
    taken = {}
    for options in ["l2-cache-size=64k", "cache-size=4M", "l2-cache-size=32M",
                    "l2-cache-size=32M,cache-clean-interval=1"]:
        process = t.hold("vise-io", "-r", "--image-opts", opened(options))
        before = memory(process)
        reads_all_tables(process)
        taken[options] = memory(process) - before
        if "interval" in options:
            # Used in the first second; after the second one unused.
            for _ in range(100):
                left = memory(process) - before
                if left < 6 * KIB:
                    break
                time.sleep(0.1)
            t.check(left < 6 * KIB, f"{left} KiB are left after the interval")
        process.end()
    small, middle, large, _ = taken.values()
    t.check(small < 3 * KIB and small + 1.5 * KIB < middle < 7 * KIB and 24 * KIB < large < 34 * KIB, taken)


@case
def reopening_gives_the_caches_other_sizes(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "8M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 8M"])
    tables = [f"read -q -P 1 {i * 32}k 512" for i in range(160)]
    for first, second, again in [("64k", "128k", False), ("128k", "64k", True)]:
        commands = [f"reopen -o l2-cache-size={second}", *tables]
        found = loads_a_table(t, f"l2-cache-size={first}", commands, "-P 1 0 512")
        t.equal(found, again, f"whether the first table was loaded again, {first} and then {second}")


@case
def bad_sizes_of_caches_are_refused_with_the_range(t):
    make(t)
    for options, text in [
            ("cache-size=1M,l2-cache-size=2M", "l2-cache-size is 2097152, but may be 0 to cache-size, 1048576"),
            ("cache-size=1M,refcount-cache-size=2M",
             "refcount-cache-size is 2097152, but may be 0 to cache-size, 1048576"),
            ("cache-size=1M,l2-cache-size=1k,refcount-cache-size=1k", "cannot be given together"),
            ("l2-cache-entry-size=256", "is 256, but must be a power of two from 512 to the cluster size, 65536"),
            ("l2-cache-entry-size=0", "from 512 to the cluster size, 65536"),
            ("l2-cache-size=-1", "l2-cache-size.*0 to 9223372036854775807")]:
        for run in (t.vise_io, t.qemu_io):
            done = run("--image-opts", opened(options), commands=["read 0 512"], code=1)
            t.check(run is not t.vise_io or re.search(text, done.stderr), done)


@cases(options=["l2-cache-entry-size=1000", "l2-cache-entry-size=128k",
                "cache-clean-interval=4294967296", "cache-clean-interval=-1", "pass-discard-other=perhaps"])
def bad_values_are_refused_by_name(t, options):
    make(t)
    t.fails_clearly(t.vise_io("--image-opts", opened(options), commands=["read 0 512"], code=1),
                    options.split("=")[0])


main()
