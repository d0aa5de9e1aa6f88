# groups: quick auto
"""vise-io's commands that are not about data: reopen, abort, sigraise, zones, objects."""
from vise_iotest import *


def image(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "4M")


@case
def all_commands_of_qemu_io_are_there(t):
    installed("qemu-io")
    names = [set(re.findall(r"^(\w+)[^\n]* -- ", program(commands=["help"]).stdout, re.M))
             for program in (t.vise_io, t.qemu_io)]
    t.equal(names[1] - names[0], set(), "missing commands")


@cases(command=["reopen -r", "reopen -o read-only=on"])
def reopened_read_only_refuses_writes_until_it_is_reopened(t, command):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", code=1,
                       commands=["write -P 1 0 64k", command, "write 0 64k", "read -P 1 0 64k",
                                 "reopen -w", "write -P 2 0 64k", "read -P 2 0 64k"])
    t.equal(result.stdout.count("wrote"), 2, "writes")
    t.equal(result.stdout.count("read 65536/65536"), 2, "reads")
    t.sound("a.qcow2")


@case
def options_change_by_reopening(t):
    image(t)
    t.vise_io("-f", "qcow2", "a.qcow2",
              commands=["write -P 1 0 1M", "reopen -o discard=unmap", "discard 0 1M", "read -P 0 0 1M",
                        "reopen -o detect-zeroes=on", "write -P 0 2M 1M", "flush"])
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["reopen -c unsafe", "write 0 64k", "flush",
                                                  "reopen -c writeback", "reopen -c writethrough"])
    t.check(not any(entry["data"] for entry in t.map_of("vise_img", "a.qcow2")
                    if entry["start"] >= 2 * MIB), "zeros were written as data")


@cases(arguments=["-r -w", "-r -o read-only=on", "-o driver=raw", "-o nothing=1", "-o discard=perhaps",
                  "-c sometimes", "-c none", "-c unsafe -o cache.no-flush=on", "-o file.filename=b",
                  "-o lazy-refcounts=on"])
def what_cannot_change_is_refused(t, arguments):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"reopen {arguments}"], code=1)
    t.fails_clearly(result)


@case
def an_operand_of_reopen_is_a_usage_error(t):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", commands=["reopen b.qcow2"], code=1)
    t.check("reopen [(-r|-w)]" in result.stdout, result)


@cases(command=["zone_report 0 1", "zrp 0 1", "zone_open 0 1", "zo 0 1", "zc 0 1", "zf 0 1", "zrs 0 1",
                "zap 0 1"])
def zones_are_refused(t, command):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", commands=[command], code=1)
    t.check(re.fullmatch(r"zone \w+ failed: Operation not supported\n", result.stdout), result)


@case
def abort_and_sigraise_end_the_program(t):
    image(t)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["abort"], code=-signal.SIGABRT)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 0 64k", "flush", "sigraise 9"], code=-9)
    check = t.vise_img("check", "-f", "qcow2", "a.qcow2", code=(0, 3))
    t.check("corrupt" not in check.stdout.lower(), check)


@cases(command=["aio_read -i 0 512", "aio_write -i 0 512"])
def invalid_requests_are_accounted_only(t, command):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", commands=[command, "aio_flush"])
    kind = "read" if "read" in command else "write"
    t.equal(result.stdout, f"injecting invalid {kind} request\n", "output")


@cases(arguments=[["-s"], ["-s", "-C"]])
def a_temporary_overlay_takes_the_writes(t, arguments):
    image(t)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 1M"])
    before = t.digest("a.qcow2")
    t.env["TMPDIR"] = str(t.dir)
    t.vise_io(*arguments, "-f", "qcow2", "a.qcow2",
              commands=["read -P 1 0 1M", "write -P 2 64k 64k", "read -P 2 64k 64k", "read -P 1 128k 64k",
                        "flush"])
    t.equal(t.digest("a.qcow2"), before, "content")
    t.equal([path.name for path in t.dir.iterdir() if path.name.startswith("vise-")], [], "files left")
    t.vise_io(commands=["open -s a.qcow2", "write -P 3 0 64k", "close", "open -r a.qcow2",
                                 "read -P 1 0 64k"])
    t.equal(t.digest("a.qcow2"), before, "content")


@cases(mode=[["-i", "threads"], ["-i", "io_uring"], ["-k", "-n"]])
def the_engine_is_chosen_beside_a_file_name(t, mode):
    image(t)
    t.vise_io(*mode, "-f", "qcow2", "a.qcow2", commands=["write -P 9 0 64k", "read -P 9 0 64k"])
    t.sound("a.qcow2")


@case
def throttle_groups_are_objects(t):
    image(t)
    options = "driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename=a.qcow2"
    start = time.monotonic()
    t.vise_io("--object", "throttle-group,id=g,limits.bps-write=1048576", "--image-opts", options,
              commands=["write -q 0 512k", "write -q 0 512k", "write -q 0 1"])
    t.check(time.monotonic() - start > 0.7, "1 MiB took less than a second at 1 MiB/s")
    t.vise_img("info", "--object", '{"qom-type": "throttle-group", "id": "g"}', "--image-opts", options)
    t.fails_clearly(t.vise_io("--image-opts", options, commands=["read 0 1"], code=1), "throttle group 'g'")


@cases(text=["nothing,id=a", "throttle-group", "throttle-group,id=7", "throttle-group,id=a,limits.iops=1",
             "throttle-group,id=a,limits.iops-total=x", "{'qom-type': 'throttle-group'}", "{"])
def objects_that_make_no_sense_are_refused(t, text):
    image(t)
    t.fails_clearly(t.vise_io("--object", text, "a.qcow2", commands=["read 0 1"], code=1), "object")


main()
