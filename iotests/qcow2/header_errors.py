# groups: rw auto
"""A change of the header that fails is taken back; where that fails too, nothing more is written. What
the disk has then is what the program goes on with: no data written later may be lost."""
import struct

from vise_iotest import *

# What leads to the write of the header, the event right before it, and how much may be allocated.
GROW_L1 = "l1_grow_activate_table"
GROW_REFCOUNTS = "refblock_alloc_switch_table"
COMMANDS = {GROW_L1: "truncate 64M", GROW_REFCOUNTS: "write -q -P 2 1M 2M"}


def make(t):
    """Small clusters and wide refcounts: their table is full soon."""
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 64k"])
    return t.read("a.qcow2")


def options(event, iotype, once):
    return ("driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,"
            f"file.inject-error.0.event={event},file.inject-error.0.iotype={iotype},"
            f"file.inject-error.0.once={once}")


def tables(data):
    """Offset and size of the L1 table, offset and size of the refcount table."""
    return struct.unpack(">IQQI", data[36:60])


@cases(event=list(COMMANDS), iotype=["write", "flush"])
def a_failed_change_is_taken_back(t, event, iotype):
    make(t)
    done = t.vise_io("--image-opts", options(event, iotype, "on"), code=1, commands=[
        COMMANDS[event], "write -q -P 5 512k 64k", "flush", "read -q -P 5 512k 64k"])
    t.check("Input/output error" in done.output, done)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k", "read -P 5 512k 64k"])
    check = t.vise_img("check", "a.qcow2", code=(0, 3))
    t.check("ERROR" not in check.output, check)
    if has("qemu-img"):
        t.qemu_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k", "read -P 5 512k 64k"])
        t.qemu_img("check", "a.qcow2", code=(0, 3))


@cases(event=list(COMMANDS), iotype=["write", "flush"])
def nothing_is_written_where_it_cannot_be_taken_back(t, event, iotype):
    before = make(t)
    done = t.vise_io("--image-opts", options(event, iotype, "off"), code=1, commands=[
        COMMANDS[event], "write -q -P 5 512k 64k", "flush", "read -q -P 1 0 64k"])
    t.equal(done.output.count("could not be taken back"), 2, "requests refused")
    t.equal(tables(t.read("a.qcow2")), tables(before), "tables that the header names")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k", "read -P 0 512k 64k"])
    t.vise_img("check", "a.qcow2", code=(0, 3))


main()
