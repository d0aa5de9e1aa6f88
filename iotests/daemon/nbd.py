# groups: auto
"""The NBD server of vise-storage-daemon: started, stopped and filled over QMP or the command line."""
import json
import os
import socket

from nbd_server import status_of
from qmp import Daemon
from vise_iotest import *

UNIX = lambda path: {"type": "unix", "data": {"path": str(path)}}


def disk(name="disk", file="a.qcow2", **more):
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": file}, **more}


def started(t, *arguments, **more):
    """A daemon with an open image and the NBD server on `nbd.sock`."""
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    daemon = Daemon(t, *arguments)
    daemon.execute("blockdev-add", disk(**more))
    daemon.execute("nbd-server-start", addr=UNIX(t.path("nbd.sock")))
    return daemon


def uri(t, name=""):
    return f"nbd+unix:///{name}?socket={t.path('nbd.sock')}"


def tells(t, text, part):
    t.check(part in text, f"{part!r} is not in: {text}")


def size_of(t, name, code=0):
    return t.run(installed("nbdinfo"), "--size", uri(t, name), code=code).stdout.strip()


@case
def exports_come_and_go(t):
    daemon = started(t)
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True})
    t.equal(daemon.execute("query-block-exports"),
            [{"node-name": "disk", "shutting-down": False, "type": "nbd", "id": "e"}])
    t.qemu_io("-f", "raw", uri(t, "disk"), commands=["write -P 7 0 1M", "read -P 7 0 1M"])
    tells(t, daemon.qmp.fails("block-export-add", {"type": "nbd", "id": "e",
                                                                      "node-name": "disk", "name": "f"}), "already in use")
    tells(t, daemon.qmp.fails("block-export-add", {"type": "nbd", "id": "f", "node-name": "disk"}), "disk")
    daemon.qmp.fails("block-export-add", {"type": "nbd", "id": "f", "node-name": "nothing"})
    daemon.execute("block-export-add", {"type": "nbd", "id": "f", "node-name": "disk", "name": "ro",
                                        "description": "to be read"})
    info = t.run(installed("nbdinfo"), "--json", uri(t, "ro")).json["exports"][0]
    t.equal((info["is_read_only"], info["description"]), (True, "to be read"))
    daemon.execute("block-export-del", id="e")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    size_of(t, "disk", code=1)
    t.equal(size_of(t, "ro"), str(4 * MIB))
    daemon.execute("nbd-server-stop")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="f")
    t.equal(daemon.execute("query-block-exports"), [])
    tells(t, daemon.qmp.fails("nbd-server-stop"), "not running")
    tells(t, daemon.qmp.fails("block-export-add", {"type": "nbd", "id": "e",
                                                                   "node-name": "disk"}), "not running")
    daemon.execute("nbd-server-start", addr=UNIX(t.path("nbd.sock")))
    tells(t, daemon.qmp.fails("nbd-server-start", addr=UNIX(t.path("other.sock"))), "already running")
    daemon.execute("blockdev-del", node_name="disk")
    daemon.quit()
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 7 0 1M"])
    t.sound("a.qcow2")


@cases(binary=["vise", "qemu"])
def an_export_names_an_iothread_that_is_there(t, binary):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    daemon = Daemon(t, "--object", "iothread,id=io", "--object", "throttle-group,id=g", binary=binary)
    daemon.execute("blockdev-add", disk())
    daemon.execute("nbd-server-start", addr=UNIX(t.path("nbd.sock")))
    export = {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}
    for name in ("nope", "g"):
        t.equal(daemon.qmp.fails("block-export-add", {**export, "iothread": name}),
                f'GenericError: iothread "{name}" not found')
    if binary == "qemu":  # 7.2 crashes when a client of such an export leaves
        daemon.quit()
        return
    daemon.execute("block-export-add", {**export, "iothread": "io", "fixed-iothread": True})
    t.qemu_io("-f", "raw", uri(t, "disk"), commands=["write -P 1 0 64k", "read -P 1 0 64k"])
    t.check("in use" in daemon.qmp.fails("object-del", id="io"), "the object goes")
    daemon.execute("block-export-del", id="e")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    daemon.execute("object-del", id="io")
    daemon.quit()
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])
    t.sound("a.qcow2")


@case
def the_old_commands_do_the_same(t):
    daemon = started(t)
    daemon.execute("nbd-server-add", device="disk", writable=True)
    t.equal(daemon.execute("query-block-exports")[0]["id"], "disk")
    t.equal(size_of(t, "disk"), str(4 * MIB))
    daemon.execute("nbd-server-remove", {"name": "disk"})
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="disk")
    daemon.qmp.fails("nbd-server-remove", {"name": "disk"})
    daemon.quit()


@case
def a_client_keeps_its_export_unless_it_is_removed_by_force(t):
    daemon = started(t)
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True})
    client = t.hold("qemu-io", "-f", "raw", uri(t, "disk"))
    client.command_line("write -P 1 0 64k")
    tells(t, daemon.qmp.fails("block-export-del", id="e"), "still in use")
    t.check("read 512/512" in client.command_line("read -P 1 0 512"), "the client works on")
    daemon.execute("block-export-del", id="e", mode="hard")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    t.check("failed" in client.command_line("read 0 512"), "the client is cut off")
    client.kill()
    daemon.quit()
    t.sound("a.qcow2")


@case
def bitmaps_are_offered_and_busy(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    t.vise_img("bitmap", "--add", "a.qcow2", "b 1")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 1M 64k"])
    daemon = Daemon(t)
    daemon.execute("blockdev-add", disk())
    daemon.execute("nbd-server-start", addr=UNIX(t.path("nbd.sock")))
    export = {"type": "nbd", "id": "e", "node-name": "disk", "allocation-depth": True,
              "bitmaps": ["b 1"]}
    tells(t, daemon.qmp.fails("block-export-add", export), "records")
    export["writable"] = True
    daemon.execute("block-export-add", export)
    t.equal(status_of(t, uri(t, "disk"), "qemu:dirty-bitmap:b 1"),
            [(0, MIB, 0), (MIB, 64 * KIB, 1), (MIB + 64 * KIB, 3 * MIB - 64 * KIB, 0)])
    other = dict(export, id="f", name="f", bitmaps=[{"node": "disk", "name": "b 1"}])
    tells(t, daemon.qmp.fails("block-export-add", other), "in use")
    tells(t, daemon.qmp.fails("block-export-add", dict(other, bitmaps=["b 2"])), "b 2")
    daemon.execute("block-export-del", id="e")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    daemon.execute("block-export-add", other)
    daemon.quit()
    t.sound("a.qcow2")


@cases(codec=CODECS)
def writes_of_clients_are_compressed_and_stay(t, codec):
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "a.qcow2", "16M")
    daemon = Daemon(t, "--blockdev", json.dumps({"driver": "compress", "node-name": "disk",
                                                 "file": disk("image")}),
                    "--nbd-server", f"addr.type=unix,addr.path={t.path('nbd.sock')},max-connections=0",
                    "--export", "nbd,id=e,node-name=disk,name=,writable=on")
    data = mixed_data(16 * MIB, 64 * KIB, 6)
    t.write("a.raw", data)
    t.run(installed("nbdcopy"), "a.raw", uri(t))
    t.qemu_img("compare", "-f", "raw", "-F", "raw", uri(t), "a.raw")
    # What the filter still holds back is written although the export goes before the node.
    t.qemu_io("-f", "raw", uri(t), commands=["write -P 9 1M 5000"])
    daemon.execute("block-export-del", id="e", mode="hard")
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    daemon.quit()
    t.write("a.raw", data[:MIB] + b"\x09" * 5000 + data[MIB + 5000:])
    t.reads_as("a.qcow2", "a.raw")
    t.sound("a.qcow2")
    t.check(t.vise_img("check", "--output=json", "a.qcow2").json["compressed-clusters"] > 50, "clusters")


@case
def a_backup_to_another_daemon(t):
    """One daemon pushes a backup into the compressed export of another."""
    data = mixed_data(8 * MIB, 64 * KIB, 2)
    t.write("a.raw", data)
    t.vise_img("convert", "-O", "qcow2", "a.raw", "source.qcow2")
    t.vise_img("create", "-f", "qcow2", "target.qcow2", "8M")
    target = Daemon(t, "--blockdev", json.dumps({"driver": "compress", "node-name": "disk",
                                                 "file": disk("image", "target.qcow2")}),
                    "--nbd-server", f"addr.type=unix,addr.path={t.path('nbd.sock')}",
                    "--export", "nbd,id=e,node-name=disk,writable=on", name="target")
    source = Daemon(t, "--blockdev", json.dumps(disk("src", "source.qcow2")), "--blockdev",
                    f"driver=nbd,node-name=dst,export=disk,server.type=unix,server.path={t.path('nbd.sock')}")
    source.execute("blockdev-backup", {"job-id": "j", "device": "src", "target": "dst", "sync": "full"})
    source.qmp.wait_job("j")
    source.quit()
    target.quit()
    t.reads_as("target.qcow2", "a.raw")
    t.sound("target.qcow2")


@case
def a_tcp_port_is_served_and_bad_descriptors_are_refused(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    daemon = started(t)
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    number = port.getsockname()[1]
    port.close()
    daemon.execute("nbd-server-stop")
    daemon.execute("nbd-server-start",
                   addr={"type": "inet", "data": {"host": "127.0.0.1", "port": str(number)}})
    daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk"})
    t.equal(t.run(installed("nbdinfo"), "--size", f"nbd://127.0.0.1:{number}/disk").stdout.strip(),
            str(4 * MIB))
    daemon.execute("nbd-server-stop")
    for text in ("", "x", "-1", "99"):
        daemon.qmp.fails("nbd-server-start", addr={"type": "fd", "data": {"str": text}})
    daemon.quit()


@cases(arguments=[{"addr": {"type": "unix", "data": {}}}, {"addr": {"type": "vsock", "data": {}}},
                  {"addr": {"type": "unix", "data": {"path": "/nonexistent/s"}}},
                  {"addr": {"type": "unix", "data": {"path": "x" * 200}}},
                  {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "no-such"}}},
                  {"addr": {"type": "unix", "data": {"path": "s"}}, "tls-creds": "none"},
                  {"addr": {"type": "unix", "data": {"path": "s"}}, "tls-authz": "none"},
                  {"addr": {"type": "unix", "data": {"path": "s"}}, "max-connections": -1}])
def a_server_that_cannot_start_leaves_none(t, arguments):
    daemon = Daemon(t)
    daemon.qmp.fails("nbd-server-start", arguments)
    tells(t, daemon.qmp.fails("nbd-server-stop"), "not running")
    daemon.quit()


main()
