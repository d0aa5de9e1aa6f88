# groups: quick auto
"""Bad input on the command line and from the file system: a clear error that names the file, the
right exit code, and nothing harmed that was there before."""
from vise_iotest import *


@cases(arguments=["info", "check", "map", "measure", "convert", "compare"])
def a_missing_file_is_named(t, arguments):
    more = {"convert": ["out"], "compare": ["gone.qcow2"]}.get(arguments, [])
    t.fails_clearly(t.vise_img(arguments, "gone.qcow2", *more, code=2 if arguments == "compare" else 1),
                    "gone.qcow2", "No such file")
    t.check(not t.path("gone.qcow2").exists() and not t.path("out").exists(), "a file was made")


@case
def vise_io_names_a_missing_file(t):
    t.fails_clearly(t.vise_io("gone.qcow2", commands=["read 0 512"], code=1), "gone.qcow2",
                    "No such file")


@cases(arguments=["create -f qcow2 -o cluster_siz=4k a 1M", "create -f nonsense a 1M",
                  "create -f qcow2 -o cluster_size=1000 a 1M", "create -f qcow2 -o cluster_size=4M a 1M",
                  "create -f qcow2 -o compression_type=lzo a 1M", "create -f qcow2 a",
                  "create -f qcow2 a -1", "create -f qcow2 a 1X", "create -f qcow2 -o refcount_bits=3 a 1M",
                  "create -f qcow2 -o compat=0.9 a 1M", "create --nonsense a 1M", "frobnicate", "convert",
                  "create -f qcow2 -o compat=0.10,compression_type=zstd a 1M",
                  "create -f qcow2 -b '' a 1M", "create -f qcow2 -o preallocation=some a 1M",
                  "convert -O nonsense raw a", "convert -c -O raw raw a", "convert -m 17 raw a",
                  "convert -m 0 raw a", "convert -S 100 raw a", "convert -n -O qcow2 raw a",
                  "convert -o cluster_siz=1k -O qcow2 raw a", "convert --target-image-opts raw driver=raw",
                  "info --output=xml raw", "info a b", "check --output=xml raw", "convert -t strange raw a",
                  "map -f nonsense raw", "measure", "measure --size 1M raw"])
def a_bad_command_line_is_refused(t, arguments):
    t.write("raw", bytes(MIB))
    refused = t.vise_img(*[word.strip("'") for word in arguments.split()], code=1)
    t.fails_clearly(refused)
    t.check(not t.path("a").exists(), f"a file was made\n{refused}")
    t.equal(t.read("raw"), bytes(MIB), "source")


@cases(image_opts=["driver=qcow2,file.filename=a.qcow2,lazy-refcount=on", "driver=qcow3,file.filename=a.qcow2",
                   "driver=qcow2,file.driver=file,file.filenam=a.qcow2", "file.filename=gone.qcow2",
                   "driver=qcow2", "driver=qcow2,file.filename=a.qcow2,file.aio=fast",
                   "driver=raw,file.filename=a.qcow2,offset=-5", "a.qcow2"])
def bad_image_options_are_refused(t, image_opts):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    before = t.digest("a.qcow2")
    t.fails_clearly(t.vise_img("info", "--image-opts", image_opts, code=1))
    t.fails_clearly(t.vise_io("--image-opts", image_opts, commands=["write 0 512"], code=1))
    t.equal(t.digest("a.qcow2"), before, "image")


@cases(misspelt=["lazy-refcount", "file.filenam"])
def the_nearest_option_is_named(t, misspelt):
    nearest = {"lazy-refcount": "lazy-refcounts", "file.filenam": "filename"}[misspelt]
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    refused = t.vise_img("info", "--image-opts", f"driver=qcow2,file.driver=file,{misspelt}=on,"
                         "file.filename=a.qcow2" if misspelt != "file.filenam" else
                         "driver=qcow2,file.driver=file,file.filenam=a.qcow2", code=1)
    t.fails_clearly(refused, nearest)


@case
def the_nearest_creation_option_is_named(t):
    refused = t.vise_img("create", "-f", "qcow2", "-o", "cluster_siz=4k", "a", "1M", code=1)
    t.fails_clearly(refused, "cluster_size")


@cases(command=["read 0 2M", "read -5 512", "read 0", "read", "write -P 256 0 512", "write -P x 0 512",
                "write -z -P 1 0 512", "write -u 0 512", "frobnicate", "read 0 1Z", "write -s gone 0 512",
                "write -c 100 512", "read -l 5 0 512", "read -P 1 0 512"])
def a_bad_vise_io_command_fails_and_the_next_runs(t, command):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    done = t.vise_io("-f", "qcow2", "a.qcow2", commands=[command, "write -P 3 64k 4k"], code=1)
    t.check(done.output.strip(), done)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 3 64k 4k", "read -P 0 0 512"])


@case
def writing_to_a_read_only_image_is_refused(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    before = t.digest("a.qcow2")
    for command in ("write 0 512", "write -z 0 64k", "discard 0 64k", "truncate 2M", "aio_write 0 512"):
        t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=[command], code=(0, 1))
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["write 0 512"], code=1)
    t.equal(t.digest("a.qcow2"), before, "image")


@case
def no_space_left_while_converting(t):
    t.tmpfs("small", "3m")
    t.write("raw", random.Random(1).randbytes(16 * MIB))
    t.write("small/other", b"precious" * 1000)
    full = t.vise_img("convert", "-c", "-O", "qcow2", "raw", "small/a.qcow2", code=1)
    t.fails_clearly(full, "No space left")
    t.equal(t.read("small/other"), b"precious" * 1000, "the neighbour")
    t.path("small/a.qcow2").unlink(missing_ok=True)
    t.fails_clearly(t.vise_img("convert", "-O", "raw", "-S", "0", "raw", "small/a.raw", code=1),
                    "No space left")


@cases(how=["plain", "filter"])
def no_space_left_while_writing_keeps_what_was_there(t, how):
    t.tmpfs("small", "3m")
    t.vise_img("create", "-f", "qcow2", "small/a.qcow2", "64M")
    t.write("noise", random.Random(2).randbytes(MIB))
    t.vise_io("-f", "qcow2", "small/a.qcow2", commands=["write -s noise 0 1M", "flush"])
    opts = "driver=qcow2,file.filename=small/a.qcow2"
    if how == "filter":
        opts = "driver=compress,file.driver=qcow2,file.file.filename=small/a.qcow2"
    full = t.vise_io("--image-opts", opts, code=1,
                     commands=[f"write -s noise {n}M 1M" for n in range(1, 8)] + ["flush"])
    t.check("No space left" in full.output, full)
    t.check(t.vise_img("check", "small/a.qcow2", code=(0, 3)).code in (0, 3), "worse than leaks")
    if has("qemu-img"):
        t.qemu_img("check", "small/a.qcow2", code=(0, 3))
    t.write("expected", t.read("noise"))
    t.vise_img("convert", "-O", "raw", "small/a.qcow2", "back")
    t.equal(t.read("back")[:MIB], t.read("noise"), "the first mebibyte")


@case
def no_space_left_while_creating(t):
    t.tmpfs("small", "64k")
    t.fails_clearly(t.vise_img("create", "-f", "qcow2", "-o", "preallocation=metadata", "small/a.qcow2",
                               "10G", code=1), "small/a.qcow2", "No space left")


@case
def a_target_on_a_read_only_file_system(t):
    t.tmpfs("ro", "4m")
    t.vise_img("create", "-f", "qcow2", "ro/a.qcow2", "1M")
    t.write("raw", bytes(MIB))
    t.make_read_only("ro")
    before = t.digest("ro/a.qcow2")
    t.fails_clearly(t.vise_img("convert", "-O", "qcow2", "raw", "ro/b.qcow2", code=1), "ro/b.qcow2",
                    "Read-only file system")
    t.fails_clearly(t.vise_img("convert", "-O", "qcow2", "raw", "ro/a.qcow2", code=1), "ro/a.qcow2")
    t.fails_clearly(t.vise_img("create", "-f", "qcow2", "ro/a.qcow2", "2M", code=1), "ro/a.qcow2")
    t.fails_clearly(t.vise_io("-f", "qcow2", "ro/a.qcow2", commands=["write 0 512"], code=1), "ro/a.qcow2")
    t.vise_img("info", "ro/a.qcow2")
    t.vise_io("-r", "-f", "qcow2", "ro/a.qcow2", commands=["read 0 512"])
    t.equal(t.digest("ro/a.qcow2"), before, "image")


@case
def a_target_folder_that_does_not_exist(t):
    t.write("raw", bytes(MIB))
    t.fails_clearly(t.vise_img("convert", "-O", "qcow2", "raw", "no/such/a.qcow2", code=1),
                    "no/such/a.qcow2", "No such file")


@case
def a_failed_create_keeps_an_existing_image(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 64k"])
    t.vise_img("create", "-f", "qcow2", "-o", "cluster_size=1000", "a.qcow2", "1M", code=1)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])


@cases(format=["vmdk", "vdi", "vpc", "vhdx", "qed", "qcow", "parallels", "luks"])
def a_format_that_only_others_know_is_not_taken_for_raw(t, format):
    if format == "luks":  # making one takes a key and a while
        t.write("image", b"LUKS\xba\xbe\0\1" + bytes(MIB))
    else:
        t.qemu_img("create", "-q", "-f", format, "image", "4M")
    if format in t.vise_img("--help").stdout.split():
        raise Skip(f"{format} is supported")
    before = t.digest("image")
    for command in (["info", "image"], ["convert", "image", "out"], ["resize", "image", "8M"]):
        t.fails_clearly(t.vise_img(*command, code=1), "image", format, "not supported")
    t.fails_clearly(t.vise_io("image", commands=["write 0 512"], code=1), format, "not supported")
    t.equal(t.digest("image"), before, "image")
    t.check(not t.path("out").exists(), "a target was made")
    # Only who says so gets its bytes, and a guest cannot make its disk look like that.
    t.vise_img("convert", "-f", "raw", "-O", "raw", "image", "out")
    t.check(t.read("out").startswith(t.read("image")), "the bytes as they are")
    t.write("disk", bytes(MIB))
    t.write("head", t.read("image")[:512])
    t.fails_clearly(t.vise_io("disk", commands=["write -s head 0 512"], code=1))
    t.equal(t.read("disk"), bytes(MIB), "disk")


@case
def the_warnings_about_probing_stand_as_scripts_know_them(t):
    t.write("raw", bytes(MIB))
    t.vise_img("create", "-f", "qcow2", "other", "1M")
    warned = t.vise_img("resize", "raw", "2M").stderr.splitlines()
    t.equal([line.startswith("WARNING: ") for line in warned], [True] * 3, warned)
    t.equal(t.vise_img("resize", "-f", "raw", "raw", "3M").stderr, "", "warnings with -f")


@case
def help_and_version_exit_zero(t):
    for program in (t.vise_img, t.vise_io):
        for option in ("--help", "-h", "--version", "-V"):
            t.check(program(option).stdout.strip(), f"{option} prints nothing")
    t.fails_clearly(t.vise_img(code=1))


main()
