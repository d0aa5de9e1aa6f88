# groups: rw auto
"""One request after the other fails, at the events of blkdebug: the image stays consistent (leaks
are all that may be left), and goes on working once nothing fails any more."""
from vise_iotest import *

EVENTS = ["l1_update", "l2_load", "l2_update", "l2_update_compressed", "l2_alloc_cow_read",
          "l2_alloc_write", "read_aio", "read_backing_aio", "read_compressed", "write_aio",
          "write_compressed", "cow_read", "cow_write", "refblock_load", "refblock_update",
          "refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write", "reftable_update",
          "reftable_grow", "refblock_alloc_write_blocks", "refblock_alloc_write_table",
          "refblock_alloc_switch_table", "cluster_alloc", "cluster_alloc_bytes",
          "cluster_alloc_space", "cluster_free", "flush_to_os", "flush_to_disk",
          "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table",
          "l1_shrink_write_table", "l1_shrink_free_l2_clusters", "pwritev", "pwritev_done"]

# Small clusters, so that a few requests need new tables and refcount blocks of every kind.
WORKLOADS = {
    "normal": ["write -P 1 0 40k", "flush", "write -P 2 100 300", "write -z 4k 8k", "flush",
               "write -P 3 300k 20k", "read 0 64k", "discard 8k 16k", "flush",
               "write -P 4 700100 65000", "flush", "write -P 5 1M 2M"],
    "compressed": ["write -c -P 1 0 40k", "flush", "write -P 2 100 300", "write -c -P 3 8k 8k",
                   "flush", "read 0 64k", "write -c -P 4 300k 32k", "discard 0 16k", "flush"],
    "resize": ["write -P 1 0 20k", "truncate 40M", "write -P 2 39M 30k", "flush", "truncate 2M",
               "write -P 3 1M 30k"],
}
CONTENT = 4 * MIB
# Events that a workload does not come by.
NOT_TOLD = {
    "normal": ["l2_update_compressed", "write_compressed", "cluster_alloc_bytes"],
    "compressed": ["refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write", "reftable_update",
                   "reftable_grow", "refblock_alloc_write_blocks", "refblock_alloc_write_table",
                   "refblock_alloc_switch_table"],
    "resize": ["l2_update_compressed", "l2_alloc_cow_read", "read_aio", "read_backing_aio",
               "read_compressed", "write_compressed", "cow_read", "cow_write", "reftable_grow",
               "refblock_alloc_write_blocks", "refblock_alloc_write_table",
               "refblock_alloc_switch_table", "cluster_alloc_bytes"],
}


def make_image(t, workload, name="a.qcow2"):
    """An image with data of all kinds, above a backing image; without it where the size changes."""
    t.write("base.raw", mixed_data(CONTENT, 16 * KIB, 1))
    backing = [] if workload == "resize" else ["-b", "base.raw", "-F", "raw"]
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", *backing,
               name, CONTENT)
    t.vise_io("-f", "qcow2", name, commands=["write -q -P 9 20k 30k", "write -q -c -P 8 60k 8k"])
    if workload != "resize" and has("qemu-img"):
        t.qemu_img("snapshot", "-c", "s", name)


def blkdebug(name, *rules):
    """The option string of the image with the rules, {"inject-error.0.event": …} and the like."""
    parts = ["driver=qcow2", "discard=unmap", "file.driver=blkdebug", f"file.image.filename={name}"]
    for rule in rules:
        parts += [f"file.{key}={value}" for key, value in rule.items()]
    return ",".join(parts)


def is_consistent(t, name, context):
    """Nothing worse than leaks, for both programs."""
    ours = t.vise_img("check", "-f", "qcow2", name, code=None)
    t.check(ours.code in (0, 3), f"{context}:\n{ours}")
    if has("qemu-img"):
        theirs = t.qemu_img("check", "-f", "qcow2", name, code=None)
        t.check(theirs.code in (0, 3), f"{context}:\n{theirs}")


def goes_on(t, name):
    """The image can be written as if nothing had been."""
    pattern = "write -q -P 77 0 64k"
    t.vise_io("-f", "qcow2", name, commands=[pattern, "read -q -P 77 0 64k"])
    is_consistent(t, name, "afterwards")


def fail_at(t, workload, rules, context):
    """Runs the workload; True if anything failed."""
    result = t.vise_io("-d", "unmap", "--image-opts", blkdebug("a.qcow2", *rules),
                       commands=WORKLOADS[workload], code=(0, 1))
    is_consistent(t, "a.qcow2", context)
    return result.code == 1


@cases(workload=list(WORKLOADS), once=["on", "off"])
def each_event_fails(t, workload, once):
    make_image(t, workload)
    pristine = t.read("a.qcow2")
    for event in EVENTS:
        t.write("a.qcow2", pristine)
        rule = {"inject-error.0.event": event, "inject-error.0.once": once}
        failed = fail_at(t, workload, [rule], f"{event}, once={once}")
        told = event not in NOT_TOLD[workload] and (workload == "resize" or "l1_" not in event[:3] or
                                                    event == "l1_update")
        t.equal(failed, told, f"whether {event} makes anything fail")
        goes_on(t, "a.qcow2")


@cases(workload=list(WORKLOADS), event=["write_aio", "cluster_alloc", "l2_update", "refblock_update",
                                        "write_compressed", "flush_to_disk", "cluster_free"])
def the_nth_event_fails(t, workload, event):
    make_image(t, workload)
    pristine = t.read("a.qcow2")
    for n in range(1, 12):
        t.write("a.qcow2", pristine)
        rules = [{"inject-error.0.event": event, "inject-error.0.state": n,
                  "inject-error.0.once": "on"}]
        rules += [{f"set-state.{i}.event": event, f"set-state.{i}.state": i + 1,
                   f"set-state.{i}.new_state": i + 2} for i in range(n)]
        if not fail_at(t, workload, rules, f"{event} number {n}"):
            break
        goes_on(t, "a.qcow2")


@cases(workload=list(WORKLOADS), iotype=["write", "flush", "write-zeroes", "discard", "read"],
       number=["28", "5"])
def every_request_of_a_kind_fails_from_some_point_on(t, workload, iotype, number):
    make_image(t, workload)
    pristine = t.read("a.qcow2")
    for event in ("none", "write_aio", "flush_to_os", "l2_update"):
        t.write("a.qcow2", pristine)
        rule = {"inject-error.0.event": event, "inject-error.0.iotype": iotype,
                "inject-error.0.errno": number}
        fail_at(t, workload, [rule], f"{iotype} from {event} on")
        goes_on(t, "a.qcow2")


@case
def what_was_flushed_survives_errors_after_it(t):
    make_image(t, "normal")
    rule = {"inject-error.0.event": "flush_to_os", "inject-error.0.state": 2}
    state = {"set-state.0.event": "flush_to_os", "set-state.0.state": 1, "set-state.0.new_state": 2}
    commands = ["write -q -P 5 0 128k", "flush", "flush", "write -q -P 6 128k 128k"]
    t.vise_io("--image-opts", blkdebug("a.qcow2", rule, state), commands=commands, code=1)
    is_consistent(t, "a.qcow2", "after errors")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -q -P 5 0 128k"])


main()
