"""lab: run a command as root in a throw-away Debian VM that has nested KVM.

The VM (L1) is QEMU with software emulation (TCG) and an emulated AMD CPU with
SVM, so /dev/kvm inside it boots stock kernels (L2).  Its root directory is this
machine's own root directory, read-only over 9p, under a tmpfs overlay: every
program, library and file here is there at the same path, and writes vanish.

  lab prepare                  fetch kernels, modules, busybox and QEMU (idempotent)
  lab run [options] -- CMD...  boot, run CMD in the current directory, exit with
                               its status (lab run --help)
  lab initrd -o OUT ...        make a small busybox initramfs for an L2 guest
  lab path [NAME]              print a file of the cache (no NAME: list them)
  lab install PACKAGE...       install Debian packages from where the lab's QEMU comes from
  lab clean                    drop the VM snapshots

`lab run` exits with CMD's own status, or 124 when --timeout passed, or 125 when
the VM did not start, panicked or died; then it prints the end of its console.
Environment: LAB_CACHE (default ~/.cache/pollux/lab).
"""
import argparse
import signal
import sys

from . import cache, initramfs, snapshot
from .apt import Apt
from .command import FAILED, Fail, say
from .prepare import prepared
from .run import run
from .vm import CPU

PATHS = {"kernel": "l2/vmlinuz", "vmlinux": "l2/vmlinux", "initrd": "l2/initrd",
         "initrd-mmio": "l2/initrd-mmio", "initrd-root": "l2/initrd-root",
         "modules": "l2/modules", "config": "l2/config", "busybox": "busybox",
         "l1-kernel": "l1/vmlinuz", "l1-vmlinux": "l1/vmlinux", "l1-initrd": "l1/initrd",
         "l1-modules": "l1/modules", "l1-config": "l1/config"}


def main():
    options = parser().parse_args()
    guarded(lambda: options.action(options))


def guarded(action):
    """Runs an action to the process's end: its result is the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(action())
    except Fail as error:
        say(error)
    except OSError as error:
        say("%s: %s" % (type(error).__name__, error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(FAILED)


def do_prepare(options):
    with prepared(options.force):
        return 0


def do_run(options):
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise Fail("run: no command; write lab run [options] -- CMD...")
    return run(options, command)


def do_initrd(options):
    if options.switch_root:
        modules = initramfs.L2_ROOT_MODULES
    else:
        modules = initramfs.L2_RUN_MODULES
    if options.modules is not None:
        modules = options.modules.split()
    script = cache.read(options.run) if options.run else None
    files = [spec.rpartition(":")[::2] for spec in options.file]
    with prepared() as manifest:
        image = initramfs.l2(manifest, modules, script, options.switch_root, files)
    cache.write_atomic(options.output, image)
    return 0


def do_path(options):
    with prepared():
        for name in [options.name] if options.name else sorted(PATHS):
            path = cache.path(PATHS[name])
            print(path if options.name else "%-12s %s" % (name, path))
    return 0


def do_install(options):
    with cache.locked("cache", waiting="waiting for other labs to end, to install"):
        Apt().install(*options.packages)
    return 0


def do_clean(_):
    with cache.locked("cache", waiting="waiting for other runs to end"):
        snapshot.clean()
    return 0


def parser():
    top = argparse.ArgumentParser(prog="lab", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name, action, text):
        command = actions.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    prepare = add("prepare", do_prepare, "fetch what the lab needs")
    prepare.add_argument("--force", action="store_true", help="fetch it again")
    add_run_options(add("run", do_run, "run a command in the VM"))
    add_initrd_options(add("initrd", do_initrd, "make an initramfs for an L2 guest"))
    path = add("path", do_path, "print a file of the cache")
    path.add_argument("name", nargs="?", choices=sorted(PATHS), metavar="NAME")
    install = add("install", do_install, "install Debian packages from the suite of the lab's QEMU")
    install.add_argument("packages", nargs="+", metavar="PACKAGE")
    add("clean", do_clean, "drop the snapshots")
    return top


def add_run_options(command):
    def option(*names, **settings):
        command.add_argument(*names, **settings)

    option("--timeout", type=float, default=300, metavar="S",
           help="seconds from CMD's start; default %(default)s")
    option("--disk", action="append", default=[], metavar="IMG",
           help="a virtio-blk disk (LAB_DISK0=/dev/vda, ...); IMG is a file, FILE,snapshot=on to "
                "forget writes, or a size such as 64M for zeroes that forget writes")
    option("--nvme", action="append", default=[], metavar="IMG",
           help="an NVMe drive with 2 poll queues (LAB_NVME0=/dev/nvme0n1, ...)")
    option("--vfio", action="append", default=[], metavar="IMG",
           help="an NVMe drive bound to vfio-pci behind an IOMMU (LAB_VFIO0=its address)")
    option("--out", metavar="DIR", help="this directory is /out in the VM, read-write")
    option("--copy", action="append", default=[], metavar="SRC:DEST",
           help="copy a file or directory to another (writable) place in the VM")
    option("--env", action="append", default=[], metavar="NAME=VALUE")
    option("--cwd", metavar="DIR", help="CMD's directory; default: the current one")
    option("--hugepages", type=int, default=64, metavar="N",
           help="2 MiB pages; default %(default)s")
    option("--mem", type=int, default=3072, metavar="MIB", help="default %(default)s")
    option("--smp", type=int, default=2, metavar="N", help="CPUs; default %(default)s")
    option("--cpu", default=CPU, metavar="MODEL", help="default %(default)s")
    option("--append", default="", metavar="ARGS", help="more L1 kernel arguments")
    option("--cold", action="store_true", help="boot instead of restoring a snapshot")
    option("--console", action="store_true", help="the VM's console on standard error")
    option("--keep", action="store_true", help="keep the run's directory (logs)")
    option("-v", "--verbose", action="store_true", help="say what takes how long")
    option("command", nargs=argparse.REMAINDER, metavar="-- CMD...")


def add_initrd_options(command):
    command.add_argument("-o", "--output", required=True, metavar="OUT")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--run", metavar="FILE",
                      help="a busybox shell script that the guest runs before it powers off "
                           "(it may call reboot -f)")
    what.add_argument("--switch-root", action="store_true",
                      help="mount the root that the kernel command line names (root=, rootfstype=, "
                           "rootflags=, ro, rw, rootdelay=) and go over to its init (init=)")
    command.add_argument("--modules", metavar="'NAME ...'",
                         help="default: '%s', or for --switch-root '%s'"
                         % (" ".join(initramfs.L2_RUN_MODULES),
                            " ".join(initramfs.L2_ROOT_MODULES)))
    command.add_argument("--file", action="append", default=[], metavar="SRC:DEST")
