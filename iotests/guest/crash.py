"""The daemon is killed while a real guest writes: what the guest had synced is there afterwards."""
from emulator import THROUGH_NBD, Emulator, serve_disk
from vise_iotest import CODECS, cases, main


def written_until_killed(t, daemon, guest, run, most):
    """Lets the guest write and sync files, and kills the daemon after `most` of them, in the midst
    of more. The names and digests of those that are safe."""
    guest.start("busy; i=0; while file run%d.$i r%d.$i 768; do sync; "
                "echo synced $(cd /mnt && sha256sum run%d.$i); i=$((i+1)); done" % (run, run, run))
    safe = {}
    while len(safe) < most:
        guest.wait_for("synced ", 120)
        digest, name = guest.wait_for("\n", 120).split()
        safe[name] = digest
    daemon.kill()
    guest.kill()
    return safe


@cases(codec=CODECS)
def a_killed_daemon_loses_nothing_that_was_synced(t, codec):
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "image.qcow2", "512M")
    safe = {}
    for run, most in enumerate([4, 7]):
        daemon = serve_disk(t, codec, "image")
        guest = Emulator(t, THROUGH_NBD)
        if run == 0:
            guest.line("/usr/sbin/mke2fs -q -t ext4 /dev/vda")
        guest.line("mount /dev/vda /mnt")
        safe.update(written_until_killed(t, daemon, guest, run, most))

        # Leaks are what a crash may leave; everybody reads the image as it is.
        t.vise_img("check", "image.qcow2", code=(0, 3))
        t.qemu_img("check", "image.qcow2", code=(0, 3))
        t.qemu_img("convert", "-O", "raw", "image.qcow2", "image.raw")
        t.run("/usr/sbin/e2fsck", "-E", "journal_only", "-y", "image.raw", code=(0, 1))
        t.run("/usr/sbin/e2fsck", "-fn", "image.raw")

    daemon = serve_disk(t, codec, "image")
    guest = Emulator(t, THROUGH_NBD)
    guest.line("mount /dev/vda /mnt")
    for name, digest in safe.items():
        t.equal(guest.line(f"cd /mnt && sha256sum {name}; cd /").split()[0], digest, name)
    guest.line("file after after 1024; umount /mnt && /usr/sbin/e2fsck -fn /dev/vda")
    guest.power_off()
    daemon.quit()
    t.vise_img("check", "-r", "leaks", "image.qcow2", code=(0, 3))
    t.sound("image.qcow2")


main()
