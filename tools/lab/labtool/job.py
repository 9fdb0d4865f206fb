"""The shell script that PID 1 of the VM sources: devices, copies, then the command."""
import os
from shlex import quote

from . import cache
from .command import Fail
from .vm import NVME_SLOT

# Taken over from the caller's environment; everything else comes with --env.
KEPT_VARIABLES = ("HOME", "USER", "LANG", "TERM", "RUST_BACKTRACE", "RUST_LOG", "CARGO_HOME",
                  "RUSTUP_HOME", "CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH")
# Places where the VM has something of its own.
HIDDEN = ("/dev", "/lab", "/out", "/proc", "/run", "/sys")
PORT_FUNCTION = r"""port() {
  i=0
  while set -- /sys/bus/pci/devices/0000:00:$1.0/0000:??:??.?; [ ! -e $1 ]; do
    i=$((i+1)); [ $i -lt 200 ] || { echo 'lab: a drive did not appear' >&2; return 1; }
    usleep 50000
  done
  dev=${1##*/}
}"""
NAMESPACE_LOOP = r"""i=0
while set -- /sys/bus/pci/devices/$dev/nvme/nvme*/nvme*n1; [ ! -e $1 ] && [ $i -lt 200 ]; do
  usleep 50000; i=$((i+1))
done"""


def check(options):
    """Fail for what could not work in the VM."""
    for spec in options.copy:
        source, _, destination = spec.rpartition(":")
        if not os.path.exists(source) or not destination.startswith("/"):
            raise Fail("--copy %s: no such file, or DEST is not absolute" % spec)
    for spec in options.env:
        if not spec.partition("=")[0].isidentifier() or "=" not in spec:
            raise Fail("--env %s: write NAME=VALUE" % spec)
    for name, path in (("current directory", working_directory(options)), ("cache", cache.ROOT)):
        for place in HIDDEN:
            if path == place or path.startswith(place + "/"):
                if name == "cache" or place == "/run":
                    raise Fail("the %s %s is not visible in the VM, which has a %s of its own: "
                               "use another" % (name, path, place))


def script(options, command):
    lines = ["R=/newroot"]
    if options.hugepages:
        lines += ["echo %d >/proc/sys/vm/nr_hugepages" % options.hugepages]
    if options.disk:
        lines += ["echo 1 >/sys/bus/pci/rescan"]
    lines += drive_lines(options)
    for spec in options.copy:
        source, _, destination = spec.rpartition(":")
        lines += ["mkdir -p $R%s" % quote(os.path.dirname(destination) or "/"),
                  "cp -a $R%s $R%s || { echo %s >&2; exit 125; }"
                  % (quote(os.path.abspath(source)), quote(destination),
                     quote("lab: --copy %s failed" % spec))]
    lines += ["echo RUN >&3", command_line(options, command),
              "rc=$?", "sync", 'echo "EXIT $rc" >&3', "sleep 5"]
    return "\n".join(lines) + "\n"


def drive_lines(options):
    """Binds drivers to the NVMe drives and names them LAB_VFIO0, ..., LAB_NVME0, ..."""
    lines = [PORT_FUNCTION] if options.nvme or options.vfio else []
    if options.vfio:
        lines += ["modprobe vfio-pci; modprobe vfio_iommu_type1"]
    for i in range(len(options.vfio)):
        lines += ["port %x; export LAB_VFIO%d=$dev" % (NVME_SLOT + len(options.nvme) + i, i),
                  "echo vfio-pci >/sys/bus/pci/devices/$dev/driver_override",
                  "echo $dev >/sys/bus/pci/drivers_probe"]
    for i in range(len(options.nvme)):
        lines += ["port %x; modprobe nvme_core multipath=0; modprobe nvme poll_queues=2"
                  % (NVME_SLOT + i), NAMESPACE_LOOP, "export LAB_NVME%d=/dev/${1##*/}" % i]
    return lines


def command_line(options, command):
    """The command, as root in the machine's own root, its output on ports of its own."""
    variables = [(name, os.environ[name]) for name in KEPT_VARIABLES if name in os.environ]
    variables += [("LAB", "1"), ("LAB_CACHE", cache.ROOT)]
    variables += [("LAB_DISK%d" % i, "/dev/vd" + "abcdef"[i]) for i in range(len(options.disk))]
    variables += [spec.partition("=")[::2] for spec in options.env]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin:/lab/bin"
    inner = "cd %s || exit 125; exec %s" % (quote(working_directory(options)),
                                            " ".join(map(quote, command)))
    return ("chroot $R /lab/bin/env -i PATH=%s %s $(env | grep ^LAB_) /bin/sh -c %s "
            "</dev/null >/dev/vport0p2 2>/dev/vport0p3 3>&-"
            % (quote(path), " ".join("%s=%s" % (name, quote(value)) for name, value in variables),
               quote(inner)))


def working_directory(options):
    return os.path.abspath(options.cwd or os.getcwd())
