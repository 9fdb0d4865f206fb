"""One QEMU process: L1, with its monitor and the ports of its serial device."""
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time

from . import cache
from .command import Fail
from .prepare import QEMU

KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=5 rdinit=/init panic=-1 oops=panic mitigations=off nokaslr "
    "tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1 random.trust_cpu=on "
    "intel_iommu=on iommu=pt net.ifnames=0 audit=0 cryptomgr.notests clearcpuid=rep_good "
    "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted")
# EPYC without what TCG lacks (it would warn) and without what only slows emulation down.
CPU = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec,-smap,-erms"
NVME_SLOT, NVME_COUNT = 0x10, 4      # root ports; NVMe cannot be in a snapshot, it is plugged in
DISK_SLOT, DISK_COUNT = 0x18, 6      # virtio-blk
PORTS = {"ctl": 1, "out": 2, "err": 3}     # of the virtio-serial device: /dev/vport0p1, ...
PR_SET_PDEATHSIG = 1


class VM:
    """A running L1. `config` has mem (MiB), smp, cpu, append (kernel arguments) and out."""

    def __init__(self, config, folder, extra=(), ram=None, incoming=False):
        self.folder, self.console = folder, os.path.join(folder, "console")
        open(self.console, "w").close()
        for name in ("ctl", "out"):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        arguments = machine_arguments(config) + memory_arguments(config, ram, incoming)
        arguments += ["-chardev", "file,id=con,path=" + comma(self.console),
                      "-serial", "chardev:con"]
        arguments += share_arguments(folder, config.get("out"))
        self.socket, theirs = {}, []
        for name in ["qmp"] + list(PORTS):
            self.socket[name], end = socket.socketpair()
            theirs.append(end)
            arguments += ["-chardev", "socket,id=c%s,fd=%d" % (name, end.fileno())]
        arguments += list(extra)
        if incoming:
            arguments += ["-incoming", "defer", "-S"]
        libc = ctypes.CDLL(None)
        self.log = open(os.path.join(folder, "qemu.log"), "w+b")
        # A VM never outlives the lab, even if that is killed.
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            pass_fds=[end.fileno() for end in theirs], start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        for end in theirs:
            end.close()
        self.buffer = {name: b"" for name in self.socket}
        self.greeted = False

    def wait_ready(self, deadline):
        """Waits until the VM's init waits for a job. `deadline` is in time.monotonic()'s time."""
        try:
            line = self.line("ctl", deadline)
        except TimeoutError:
            raise Fail("the VM did not come up in time; its console ends:\n" + tail(self.console))
        if line != "READY":
            raise Fail("the VM died while it booted (%r): %s\n%s"
                       % (line, self.why(), tail(self.console)))

    def line(self, name, deadline):
        """The next line of a port; None at its end."""
        while b"\n" not in self.buffer[name]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket[name]], [], [], left)[0]:
                raise TimeoutError("no word from the VM")
            try:
                data = self.socket[name].recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.buffer[name] += data
        line, _, self.buffer[name] = self.buffer[name].partition(b"\n")
        return line.decode(errors="replace").strip()

    def qmp(self, command, deadline, **arguments):
        """A command of QEMU's monitor; returns its result."""
        if not self.greeted:
            self.greeted = True
            self.line("qmp", deadline)
            self.qmp("qmp_capabilities", deadline)
        message = json.dumps({"execute": command, "arguments": arguments})
        self.socket["qmp"].sendall(message.encode())
        while True:
            line = self.line("qmp", deadline)
            if line is None:
                raise Fail("QEMU closed its monitor at %s: %s" % (command, self.why()))
            reply = json.loads(line)
            if "error" in reply:
                raise Fail("%s: %s" % (command, reply["error"]["desc"]))
            if "return" in reply:
                return reply["return"]

    def why(self):
        """What QEMU itself said."""
        lines = tail(self.log.name, 30).split("\n")
        return ("\n".join(line for line in lines if "TCG doesn't support" not in line)
                or "(QEMU said nothing)")

    def kill(self):
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for end in self.socket.values():
            end.close()
        self.log.close()


def machine_arguments(config):
    append = KERNEL_ARGUMENTS + (" " + config["append"] if config["append"] else "")
    arguments = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,memory-backend=ram,kernel-irqchip=split,i8042=off,hpet=off,smbus=off,"
                    "sata=off,vmport=off",
        "-accel", "tcg,thread=multi", "-cpu", config["cpu"], "-m", "%dM" % config["mem"],
        "-smp", str(config["smp"]), "-bios", "qboot.rom",
        "-device", "intel-iommu,intremap=on,eim=off",
        "-kernel", cache.path("l1/vmlinux"), "-initrd", cache.path("l1/initrd"),
        "-append", append,
        "-device", "virtio-serial-pci,id=vs,bus=pcie.0,addr=2,max_ports=8",
        "-mon", "chardev=cqmp,mode=control"]
    for name, number in PORTS.items():
        arguments += ["-device", "virtserialport,bus=vs.0,nr=%d,chardev=c%s,name=lab.%s"
                      % (number, name, name)]
    for i in range(NVME_COUNT):
        arguments += ["-device", "pcie-root-port,id=rp%d,bus=pcie.0,addr=0x%x,chassis=%d,slot=%d"
                      % (i, NVME_SLOT + i, i + 1, i + 1)]
    return arguments


def memory_arguments(config, ram, incoming):
    """`ram` is a snapshot's file: written while one is made, mapped privately afterwards."""
    if not ram:
        return ["-object", "memory-backend-ram,id=ram,size=%dM" % config["mem"]]
    return ["-object", "memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s"
            % (config["mem"], comma(ram), "off" if incoming else "on")]


def share_arguments(folder, out):
    """9p shares: the machine's root, read-only; the run's own folder; --out."""
    arguments = []
    for tag, path, slot, access in (("host", "/", 3, ",readonly=on"),
                                    ("ctl", os.path.join(folder, "ctl"), 4, ""),
                                    ("out", out or os.path.join(folder, "out"), 5, "")):
        arguments += ["-fsdev", "local,id=%s,path=%s,security_model=none,multidevs=remap%s"
                      % (tag, comma(path), access),
                      "-device", "virtio-9p-pci,fsdev=%s,mount_tag=%s,bus=pcie.0,addr=%d"
                      % (tag, tag, slot)]
    return arguments


def comma(text):
    """Text as a value in one of QEMU's comma-separated lists."""
    return text.replace(",", ",,")


def tail(file, lines=40):
    """The last lines of a text file; empty if there is none."""
    with contextlib.suppress(OSError):
        text = cache.read(file)[-20000:].decode(errors="replace").replace("\r", "")
        return "\n".join(text.split("\n")[-lines:]).strip("\n")
    return ""
