# groups: auto
"""The driver nbd: our programs as clients of vise-nbd, qemu-nbd and nbdkit."""
from nbd_server import *
from vise_iotest import *

SERVERS = ["vise-nbd", "qemu-nbd"]


def options(server, **more):
    words = [f"driver=nbd,server.type=unix,server.path={server.path}"]
    return ",".join(words + [f"{key.replace('_', '-')}={value}" for key, value in more.items()])


@cases(program=SERVERS)
def images_are_read_and_written(t, program):
    data = mixed_data(8 * MIB, 64 * KIB, 4)
    t.write("a.raw", data)
    t.vise_img("convert", "-O", "qcow2", "a.raw", "a.qcow2")
    server = serve(t, "-e", "4", "-f", "qcow2", "--discard=unmap", "a.qcow2", program=program)
    t.vise_img("compare", "-f", "raw", "-F", "raw", server.uri(), "a.raw")
    model = bytearray(data)
    model[1000:71000] = b"\x21" * 70000
    model[MIB:2 * MIB] = bytes(MIB)
    t.vise_io("-f", "raw", server.uri(),
              commands=["write -P 0x21 1000 70000", "write -z 1M 1M", "write -zu 1M 64k", "flush",
                        "write -f -P 0x21 2000 512", "read -P 0x21 1000 70000", "discard 1M 64k",
                        "read -P 0 1M 1M"])
    t.write("model.raw", bytes(model))
    t.vise_img("compare", "-f", "raw", "-F", "raw", server.uri(), "model.raw")
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("a.qcow2", "model.raw")
    t.sound("a.qcow2")


@cases(program=SERVERS)
def converting_to_and_from_an_export(t, program):
    t.write("a.raw", mixed_data(16 * MIB, 64 * KIB, 8))
    t.vise_img("create", "-f", "qcow2", "target.qcow2", "16M")
    server = serve(t, "-f", "raw", "-x", "the export", "a.raw", program=program)
    name = f"nbd+unix:///the%20export?socket={server.path}"
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", name, "b.qcow2")
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("b.qcow2", "a.raw")
    target = serve(t, "-f", "qcow2", "target.qcow2", program=program, name="target")
    t.vise_img("convert", "-n", "-f", "qcow2", "-O", "raw", "b.qcow2", target.uri())
    t.equal(target.stop(), 0, "exit status")
    t.reads_as("target.qcow2", "a.raw")


@case
def a_qcow2_image_inside_an_export(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    os.truncate(t.path("a.qcow2"), 24 * MIB)  # an export does not grow
    server = serve(t, "-e", "4", "-f", "raw", "a.qcow2")
    t.vise_io("-f", "qcow2", server.uri(), commands=["write -P 7 100k 300k", "read -P 7 100k 300k"])
    info = t.vise_img("info", "--output=json", server.uri()).json
    t.equal((info["format"], info["virtual-size"]), ("qcow2", 16 * MIB), "info")
    t.vise_io("--image-opts", f"driver=compress,file.driver=qcow2,file.file.driver=nbd,"
              f"file.file.path={server.path}", commands=["write -P 8 1M 1M"])
    server.stop()
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 7 100k 300k", "read -P 8 1M 1M"])
    t.sound("a.qcow2")


@cases(program=SERVERS)
def the_map_is_that_of_qemu_img(t, program):
    t.qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", "16M")
    t.qemu_io("-f", "qcow2", "a.qcow2",
              commands=["write -P 1 0 1M", "write -P 2 3M 192k", "write -z 4M 512k", "write -P 3 15M 1M"])
    server = serve(t, "-e", "4", "-r", "-f", "qcow2", "a.qcow2", program=program)
    t.equal(t.map_of("vise_img", server.uri(), "-f", "raw"), t.map_of("qemu_img", server.uri(), "-f", "raw"),
            "maps")


@cases(form=["nbd+unix:///a%20b?socket={0}", "nbd:unix:{0}:exportname=a b",
             "json:{{'driver': 'nbd', 'path': '{0}', 'export': 'a b', 'reconnect-delay': 3}}",
             "json:{{'driver': 'raw', 'file': {{'driver': 'nbd', 'export': 'a b', 'server': "
             "{{'type': 'unix', 'path': '{0}'}}}}}}"])
def names_are_those_of_qemu_img(t, form):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    server = serve(t, "-e", "4", "-r", "-x", "a b", "-f", "qcow2", "a.qcow2")
    name = form.format(server.path)
    ours = t.vise_img("info", "--output=json", name).json
    theirs = t.qemu_img("info", "--output=json", name).json
    for key in ("filename", "format", "virtual-size"):
        t.equal(ours[key], theirs[key], key)


@cases(name=["nbd:", "nbd:host", "nbd:unix:", "nbd:unix:/s:exportname=", "nbd://", "nbd+unix:///x",
             "nbd+unix:///?socket=", "nbd+unix:///?sock=/s", "nbd+unix://host/?socket=/s", "nbd:///x",
             "nbd://h:1/?socket=/s", "nbd://h:1/%4", "nbd://h:1/%zz", "nbd://h:1/%00", "nbd://[::1",
             "nbds://h/", "nbd+unix:///?socket=/no/such/socket", "nbd+unix:///?socket=/" + "x" * 110])
def bad_names_are_refused(t, name):
    t.fails_clearly(t.vise_img("info", name, code=1))


@cases(text=["driver=nbd", "driver=nbd,path=/s,host=h", "driver=nbd,path=/s,port=1", "driver=nbd,port=1",
             "driver=nbd,server.type=vsock", "driver=nbd,server.type=unix", "driver=nbd,path=/s,expert=x",
             "driver=nbd,path=/s,reconnect-delay=-1", "driver=nbd,path=/s,open-timeout=soon"])
def bad_options_are_refused(t, text):
    t.fails_clearly(t.vise_io("--image-opts", text, commands=["read 0 512"], code=1))


@cases(program=SERVERS)
def unknown_and_read_only_exports(t, program):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    server = serve(t, "-e", "4", "-r", "-x", "e", "-f", "qcow2", "a.qcow2", program=program)
    t.fails_clearly(t.vise_io("-f", "raw", server.uri("f"), commands=["read 0 512"], code=1), "f")
    t.fails_clearly(t.vise_io("-f", "raw", server.uri("e"), commands=["read 0 512"], code=1), "read-only")
    t.vise_io("-r", "-f", "raw", server.uri("e"), commands=["read -P 0 0 1M"])


@case
def errors_of_the_server_are_errors_of_the_request(t):
    kit = serve(t, "--filter=error", "memory", "1M", "error=ENOSPC", "error-rate=0",
                "error-pwrite-rate=100%", program="nbdkit")
    result = t.vise_io("-f", "raw", kit.uri(),
                       commands=["read -P 0 0 64k", "write -P 1 0 64k", "read -P 0 0 64k"], code=1)
    t.check("No space left on device" in result.output, result)
    t.equal(result.output.count("read 65536/65536"), 2, "reads")


@case
def the_block_sizes_of_the_server_are_obeyed(t):
    kit = serve(t, "--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4k",
                "blocksize-preferred=16k", "blocksize-maximum=64k", "blocksize-error-policy=error",
                program="nbdkit")
    t.vise_io("-f", "raw", kit.uri(),
              commands=["write -P 1 1000 300000", "read -P 1 1000 300000", "read -P 0 0 1000",
                        "write -z 512 1024", "read -P 0 0 1536", "read -P 1 1536 1000"])


@cases(program=SERVERS)
def requests_wait_for_a_server_that_comes_back(t, program):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2", program=program)
    client = t.hold("vise-io", "--image-opts", "driver=raw,file." + options(server, reconnect_delay=60)
                    .replace(",", ",file."))
    client.command_line("write -P 1 0 1M")
    client.command_line("flush")
    server.stop(signal.SIGKILL)
    client.process.stdin.write(b"write -P 2 1M 1M\n")
    client.process.stdin.flush()
    time.sleep(0.3)
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2", program=program)
    t.check("wrote 1048576/1048576" in client.wait_for("-io> "), "the write after the return")
    t.check("read 1048576/1048576" in client.command_line("read -P 1 0 1M"), "the read of the first write")
    client.command_line("flush")
    t.equal(client.end(), 0, "exit status")
    t.equal(server.stop(), 0, "exit status of the server")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 1M", "read -P 2 1M 1M"])


@case
def without_patience_requests_fail_until_the_server_is_back(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2")
    client = t.hold("vise-io", "-f", "raw", server.uri())
    client.command_line("write -P 1 0 1M")
    server.stop()
    for _ in range(2):
        lost = client.command_line("read -P 1 0 1M")
        t.check("read failed: Input/output error" in lost, lost)
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2")
    for _ in range(200):
        answer = client.command_line("read -P 1 0 1M")
        if "read 1048576/1048576" in answer:
            break
        time.sleep(0.05)
    t.check("read 1048576/1048576" in answer, answer)
    t.equal(client.end(), 1, "exit status")


@case
def another_disk_in_the_place_of_the_old_one_is_not_written_to(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    t.vise_img("create", "-f", "qcow2", "b.qcow2", "17M")
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2")
    client = t.hold("vise-io", "--image-opts",
                    "driver=raw,file." + options(server, reconnect_delay=60).replace(",", ",file."))
    server.stop()
    server = serve(t, "-e", "4", "-f", "qcow2", "b.qcow2")
    before = t.digest("b.qcow2")
    t.check("size" in client.command_line("write -P 1 0 1M"), "the other size is not noticed")
    client.end()
    server.stop()
    t.equal(t.digest("b.qcow2"), before, "the other disk")


@case
def opening_waits_for_a_server(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    words = ["--image-opts", f"driver=nbd,path={t.path('s.sock')},open-timeout=60"]
    client = Process([t.tools / "vise-io", *words], t.dir, t.env)
    time.sleep(0.3)
    serve(t, "-f", "qcow2", "a.qcow2")
    client.wait_for("-io> ")
    t.check("read 512/512" in client.command_line("read 0 512"), "read")
    t.equal(client.end(), 0, "exit status")
    start = time.monotonic()
    t.fails_clearly(t.vise_io("--image-opts", f"driver=nbd,path={t.path('none')},open-timeout=1",
                              commands=["read 0 512"], code=1), "none")
    t.check(0.2 < time.monotonic() - start < 20, "open-timeout=1 waited for too long or not at all")


@case
def a_silent_server_holds_nobody(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    server = serve(t, "-e", "4", "-f", "qcow2", "a.qcow2")
    client = t.hold("vise-io", "-f", "raw", server.uri())
    server.stop()
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(server.path)
    silent.listen()
    silent.settimeout(30)
    connection, _ = silent.accept()  # the client has come back, and waits for a greeting
    start = time.monotonic()
    client.end()
    connection.close()
    refused = t.vise_io("--image-opts", f"driver=nbd,path={server.path},open-timeout=1",
                        commands=["read 0 512"], code=1)
    t.fails_clearly(refused, "s.sock")
    t.check(time.monotonic() - start < 20, "the silent server held its clients")
    silent.close()


main()
