# groups: quick auto
"""The compress filter's options, and the children it refuses."""
from vise_iotest import *

QCOW2 = "file.driver=qcow2,file.file.filename=a.qcow2"


@cases(option=["mode=new-writes", "mode=all-writes", "level=1", "level=9"])
def a_valid_option_is_taken(t, option):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("--image-opts", f"driver=compress,{option},{QCOW2}",
              commands=["write -P 3 0 64k", "read -P 3 0 64k"])
    t.sound("a.qcow2")


@cases(option=["mode=some-writes", "level=-1", "level=1000", "level=high", "mod=all-writes"])
def a_bad_option_is_refused(t, option):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    refused = t.vise_io("--image-opts", f"driver=compress,{option},{QCOW2}", commands=["read 0 512"],
                        code=1)
    t.fails_clearly(refused, option.split("=")[0])


@case
def a_misspelt_option_names_the_nearest(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    refused = t.vise_io("--image-opts", f"driver=compress,mod=all-writes,{QCOW2}",
                        commands=["read 0 512"], code=1)
    t.fails_clearly(refused, "'?mode'?")


@case
def a_child_that_cannot_compress_is_refused(t):
    t.write("a.raw", bytes(MIB))
    refused = t.vise_io("--image-opts", "driver=compress,file.driver=raw,file.file.filename=a.raw",
                        commands=["write 0 64k"], code=1)
    t.fails_clearly(refused, "compress")
    t.equal(t.digest("a.raw"), hashlib.sha256(bytes(MIB)).hexdigest(), "raw file")


@case
def a_filter_above_a_filter(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("--image-opts",
              "driver=compress,file.driver=compress,file.file.driver=qcow2,"
              "file.file.file.filename=a.qcow2", commands=["write -P 3 10k 200k", "read -P 3 10k 200k"])
    t.sound("a.qcow2")


@case
def json_names_work_like_dotted_options(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    name = ('json:{"driver":"compress","mode":"all-writes","file":{"driver":"qcow2",'
            '"file":{"driver":"file","filename":"a.qcow2"}}}')
    t.vise_io(name, commands=["write -P 3 0 64k", "write -P 4 0 64k", "read -P 4 0 64k"])
    t.equal(t.vise_img("check", "--output=json", "a.qcow2").json["compressed-clusters"], 1,
            "compressed clusters")


@case
def the_plugin_is_found_in_the_plugin_path(t):
    found = list(t.build.rglob("vise-compress.so"))
    if not found:
        raise Skip("built without plugins")
    t.path("plugins").mkdir()
    shutil.copy(found[0], t.path("plugins/vise-compress.so"))
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("--image-opts", f"driver=compress,{QCOW2}", commands=["write -P 3 0 64k"],
              env={"VISE_PLUGIN_PATH": str(t.path("plugins"))})
    t.equal(t.vise_img("check", "--output=json", "a.qcow2").json["compressed-clusters"], 1,
            "compressed clusters")


@case
def a_broken_plugin_is_a_clear_error(t):
    if not list(t.build.rglob("vise-compress.so")):
        raise Skip("built without plugins")
    t.path("plugins").mkdir()
    t.write("plugins/vise-strange.so", b"this is no shared object")
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    refused = t.vise_io("--image-opts", f"driver=strange,{QCOW2}", commands=["read 0 512"], code=1,
                        env={"VISE_PLUGIN_PATH": str(t.path("plugins"))})
    t.fails_clearly(refused, "strange")


main()
