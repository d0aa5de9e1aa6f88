"""A real guest on a compressed disk: ext4 written, trimmed, backed up and streamed while it runs."""
from emulator import THROUGH_NBD, Emulator, create, qcow2, serve_disk
from nbd_server import serve
from vise_iotest import CODECS, MIB, cases, main

INCREMENTS = ["first", "second"]


def install(t, codec):
    """The guest's first run: makes the file system in base.qcow2, and leaves it noted. The digest."""
    create(t, codec, "base")
    daemon = serve_disk(t, codec, "base")
    guest = Emulator(t, THROUGH_NBD)
    guest.line("/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && mkdir /mnt/folder")
    guest.line("for i in 0 1 2 3; do file folder/$i a$i 2048; done; file large large 4096; sync")
    guest.line("file folder/1 overwritten 2048; sync")
    guest.line("dd if=/dev/urandom of=/mnt/large bs=4k count=9 seek=301 conv=notrunc,fsync 2>/dev/null")
    guest.line("rm /mnt/folder/2; fstrim /mnt")
    digest = guest.line("note")
    guest.reboot()
    guest.line("mount /dev/vda /mnt")
    t.equal(guest.line("verify"), digest, "files after a reboot")
    guest.power_off()
    daemon.quit()
    t.sound("base.qcow2")
    return digest


def change(guest, number):
    """What happens between two backups; the digest."""
    guest.line(f"file folder/0 b{number} 2048; file new{number} c{number} 1536; sync")
    guest.line(f"dd if=/dev/urandom of=/mnt/large bs=4k count=9 seek={number * 50} conv=notrunc,fsync 2>/dev/null")
    guest.line(f"rm -f /mnt/new{number - 1}; fstrim /mnt")
    return guest.line("note")


def back_up(target, **how):
    return {"job-id": target, "device": "disk", "target": target, "compress": True, **how}


def boots_from(t, drive, digest):
    """A guest with the disk, as it was when power failed: mounts, and finds what it noted."""
    guest = Emulator(t, f"snapshot=on,{drive}")
    guest.line("mount /dev/vda /mnt")
    t.equal(guest.line("verify"), digest, f"files in {drive}")
    guest.line("umount /mnt && /usr/sbin/e2fsck -fn /dev/vda")
    guest.power_off()


@cases(codec=CODECS)
def backups_and_streams_under_a_guest(t, codec):
    digests = {"base": install(t, codec)}
    create(t, codec, "top", "base")
    for name, backing in [("full", None), ("first", "full"), ("second", "first")]:
        create(t, codec, name, backing)
    daemon = serve_disk(t, codec, "top")
    qmp = daemon.qmp
    for name in ["full", *INCREMENTS]:
        qmp.execute("blockdev-add", qcow2(name, backing=None))
    guest = Emulator(t, THROUGH_NBD)
    guest.line("mount /dev/vda /mnt")
    t.equal(guest.line("verify"), digests["base"], "files in the overlay")

    # A full backup and two incremental ones, each of an instant at which the guest is at work.
    guest.line("busy")
    digests["full"] = change(guest, 1)
    bitmap = {"node": "disk", "name": "hourly"}
    qmp.execute("transaction", actions=[
        {"type": "block-dirty-bitmap-add", "data": bitmap},
        {"type": "blockdev-backup", "data": back_up("full", sync="full")}])
    qmp.wait_job("full")
    for number, name in enumerate(INCREMENTS, 2):
        digests[name] = change(guest, number)
        qmp.execute("blockdev-backup", back_up(name, sync="incremental", bitmap="hourly"))
        qmp.wait_job(name)

    # The disk lets go of its base image, and the two increments become one, all at the same time.
    for name in ["full", *INCREMENTS]:
        qmp.execute("blockdev-del", node_name=name)
    for name, backing in [("full", None), ("first", "full"), ("second", "first")]:
        qmp.execute("blockdev-add", qcow2(name, backing=backing))
    qmp.execute("blockdev-add", driver="compress", node_name="merged", file="second")
    qmp.execute("block-stream", job_id="merge", device="merged", base_node="full")
    qmp.execute("block-stream", job_id="stream", device="disk", speed=8 * MIB)
    digests["top"] = change(guest, 4)
    qmp.wait_job("merge")
    qmp.wait_job("stream")

    # What has been overwritten is compressed again, and the file gets shorter, under the guest.
    qmp.execute("blockdev-compress", job_id="compress", device="disk", compact=True)
    digests["top"] = change(guest, 5)
    qmp.wait_job("compress")
    t.check(int(guest.line("calm")) > 3, "the guest has written")
    t.equal(guest.line("verify"), digests["top"])
    guest.power_off()
    daemon.quit()

    for name in ["base", "top", "full", *INCREMENTS]:
        t.sound(f"{name}.qcow2")
    info = {name: t.qemu_img("info", "--output=json", f"{name}.qcow2").json for name in ["top", "second"]}
    t.check("backing-filename" not in info["top"], "the base is still below the disk")
    t.equal(info["second"]["backing-filename"], "full.qcow2")
    stored = t.qemu_img("check", "--output=json", "second.qcow2").json
    t.equal(stored["compressed-clusters"], stored["allocated-clusters"], "clusters of the merged increment")

    boots_from(t, "format=qcow2,file=full.qcow2", digests["full"])
    boots_from(t, "format=qcow2,file=second.qcow2", digests["second"])
    server = serve(t, "-r", "-f", "qcow2", "-x", "disk", "first.qcow2", name="nbd.sock")
    boots_from(t, THROUGH_NBD, digests["first"])
    server.stop()
    boots_from(t, "format=qcow2,file=top.qcow2", digests["top"])


main()
