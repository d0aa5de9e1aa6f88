"""The daemon is killed while a real guest writes: what the guest had synced is there afterwards."""
from emulator import THROUGH_NBD, Emulator, create, serve_disk
from vise_iotest import CODECS, KIB, case, cases, main


def written_until_killed(t, daemon, guest, run, most, job):
    """Lets the guest write and sync files while a job works on its disk, and kills the daemon after
    `most` of them, in the midst of more. The names and digests of those that are safe."""
    guest.start("busy; i=0; while file run%d.$i r%d.$i 768; do sync; "
                "echo synced $(cd /mnt && sha256sum run%d.$i); i=$((i+1)); done" % (run, run, run))
    safe = {}
    while len(safe) < most:
        guest.wait_for("synced ", 120)
        digest, name = guest.wait_for("\n", 120).split()
        safe[name] = digest
        if len(safe) == most // 2:
            daemon.execute(job, job_id="job", device="disk", speed=256 * KIB)
    jobs = [each["status"] for each in daemon.execute("query-jobs")]
    # Where overwrites are compressed, too, there may be nothing to compress later.
    t.check(jobs == ["running"] or job == "blockdev-compress" and not jobs, f"jobs: {jobs}")
    daemon.kill()
    guest.kill()
    return safe


def readable(t, image):
    """What a crash may leave is leaks; everybody reads the image as it is."""
    t.vise_img("check", image, code=(0, 3))
    t.qemu_img("check", image, code=(0, 3))
    t.qemu_img("convert", "-O", "raw", image, "image.raw")
    t.run("/usr/sbin/e2fsck", "-E", "journal_only", "-y", "image.raw", code=(0, 1))
    t.run("/usr/sbin/e2fsck", "-fn", "image.raw")


@cases(codec=CODECS)
def a_killed_daemon_loses_nothing_that_was_synced(t, codec):
    create(t, codec, "image")
    daemon = serve_disk(t, codec, "image")
    guest = Emulator(t, THROUGH_NBD)
    guest.line("/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt")
    safe = written_until_killed(t, daemon, guest, 0, 4, "blockdev-compress")
    readable(t, "image.qcow2")

    create(t, codec, "overlay", "image")
    daemon = serve_disk(t, codec, "overlay")
    guest = Emulator(t, THROUGH_NBD)
    guest.line("mount /dev/vda /mnt")
    safe.update(written_until_killed(t, daemon, guest, 1, 6, "block-stream"))
    readable(t, "overlay.qcow2")

    daemon = serve_disk(t, codec, "overlay")
    guest = Emulator(t, THROUGH_NBD)
    guest.line("mount /dev/vda /mnt")
    daemon.execute("block-stream", job_id="job", device="disk")
    daemon.qmp.wait_job("job")
    for name, digest in safe.items():
        t.equal(guest.line(f"cd /mnt && sha256sum {name}; cd /").split()[0], digest, name)
    guest.line("file after after 1024; umount /mnt && /usr/sbin/e2fsck -fn /dev/vda")
    guest.power_off()
    daemon.quit()
    t.vise_img("check", "-r", "leaks", "overlay.qcow2", code=(0, 3))
    t.sound("overlay.qcow2")


@case
def a_guest_outlives_restarts_of_the_daemon(t):
    """QEMU connects again, and repeats what it has no answer to; all that was answered is stored."""
    create(t, "zstd", "image")
    daemon = serve_disk(t, "zstd", "image")
    guest = Emulator(t, f"{THROUGH_NBD},file.reconnect-delay=120")
    guest.line("/usr/sbin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && busy")
    for restart in range(3):
        guest.line(f"file f{restart} {restart} 1024")  # in the page cache, some of it on its way
        daemon.quit()
        daemon = serve_disk(t, "zstd", "image")
        guest.line("sync")
    guest.line("calm")
    digest = guest.line("note")
    guest.reboot()
    guest.line("mount /dev/vda /mnt")
    t.equal(guest.line("verify"), digest, "files")
    guest.line("umount /mnt && /usr/sbin/e2fsck -fn /dev/vda")
    guest.power_off()
    daemon.quit()
    t.sound("image.qcow2")


main()
