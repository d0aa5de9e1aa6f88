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
                  "-c sometimes", "-c unsafe -o cache.no-flush=on", "-o file.filename=b",
                  "-o l2-cache-size=x", "-o file.aio=threads", "-o cache.speed=1", "-o offset=5"])
def what_cannot_change_is_refused(t, arguments):
    image(t)
    result = t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"reopen {arguments}"], code=1)
    t.fails_clearly(result)


def open_flags(process, name):
    """The flags with which a process holds the file open."""
    for link in Path(f"/proc/{process.process.pid}/fd").iterdir():
        if os.path.realpath(link) == str(name):
            flags = re.search(r"flags:\s*(\d+)", (link.parent.parent / "fdinfo" / link.name).read_text())
            return int(flags[1], 8)
    raise Failure(f"{name} is not open")


@case
def the_cache_mode_reaches_the_file(t):
    image(t)
    held = t.hold("vise-io", "-f", "qcow2", "a.qcow2")
    held.command_line("write -P 5 0 64k")
    for command, direct, writable in (("reopen", False, True), ("reopen -c none", True, True),
                                      ("reopen -c writeback", False, True),
                                      ("reopen -o cache.direct=on", True, True),
                                      ("reopen -c directsync -r", True, False),
                                      ("reopen -c unsafe -w", False, True)):
        t.equal(held.command_line(command), "vise", f"output of {command}, then the prompt")
        flags = open_flags(held, t.path("a.qcow2").resolve())
        t.equal((bool(flags & os.O_DIRECT), bool(flags & os.O_RDWR)), (direct, writable), command)
        t.check("65536/65536" in held.command_line("read -P 5 0 64k"), f"data after {command}")
    t.equal(held.end(), 0, "exit status")
    t.sound("a.qcow2")


@case
def options_of_the_driver_really_change(t):
    image(t)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 5 0 2M", "flush"])
    full = t.allocated("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["reopen -o pass-discard-request=off", "discard 0 1M",
                                                  "read -P 0 0 1M", "flush"])
    t.equal(t.allocated("a.qcow2"), full, "space that was not to be given back")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["reopen -o pass-discard-request=off",
                                                  "reopen -o pass-discard-request=on,l2-cache-size=64k",
                                                  "discard 1M 1M", "flush"])
    now = t.allocated("a.qcow2")
    t.check(now < full - MIB // 2, f"space was not given back: {full}, then {now}")
    t.write("raw", bytes([1]) * 4096 + bytes([2]) * 8192)
    t.vise_io("-f", "raw", "raw", commands=["read -P 1 0 4k", "reopen -o offset=4k,size=4k",
                                            "read -P 2 0 4k", "length", "write -P 3 0 4k",
                                            "reopen -o offset=8k", "read -P 2 0 4k"])
    t.equal(t.read("raw"), bytes([1]) * 4096 + bytes([3]) * 4096 + bytes([2]) * 4096, "raw data")


@case
def the_compress_filter_changes_its_mode(t):
    image(t)
    options = "driver=compress,file.driver=qcow2,file.file.filename=a.qcow2"
    t.vise_io("--image-opts", options,
              commands=["write -P 1 0 64k", "reopen -o mode=all-writes", "write -P 2 0 64k",
                        "reopen -o mode=new-writes", "write -P 3 64k 64k", "flush", "write -P 4 64k 64k"])
    entries = t.vise_img("map", "--output=json", "a.qcow2").json
    t.equal([entry["compressed"] for entry in entries[:2]], [True, False], entries)
    t.vise_io("a.qcow2", commands=["read -P 2 0 64k", "read -P 4 64k 64k"])


@case
def a_reopen_that_fails_changes_nothing(t):
    image(t)
    done = t.vise_io("-f", "qcow2", "a.qcow2", code=1, commands=[
        "write -P 5 0 2M", "reopen -o detect-zeroes=on",
        "reopen -o detect-zeroes=off,l2-cache-size=x", "write -P 0 3M 64k", "read -P 5 0 2M",
        "write -P 6 0 64k", "read -P 6 0 64k"])
    t.equal(done.stdout.count("read "), 2, done)
    t.check(not any(entry["data"] for entry in t.map_of("vise_img", "a.qcow2")
                    if entry["start"] >= 3 * MIB), "zeros were written as data")


@case
def a_temporary_overlay_is_not_lost_by_reopening(t):
    image(t)
    done = t.vise_io("-s", "-f", "qcow2", "a.qcow2", code=1,
                     commands=["write -P 5 0 64k", "reopen -c none", "read -P 5 0 64k"])
    t.fails_clearly(done, "overlay")
    t.check("read 65536/65536" in done.stdout and "failed" not in done.stdout, done)


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
