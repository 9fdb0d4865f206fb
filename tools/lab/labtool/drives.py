"""Images as drives of the VM."""
import json
import os
import re

from .command import Fail
from .vm import DISK_COUNT, DISK_SLOT, NVME_COUNT, comma


def check(options):
    """Fail if there are more drives than places."""
    if len(options.nvme + options.vfio) > NVME_COUNT or len(options.disk) > DISK_COUNT:
        raise Fail("at most %d NVMe drives (--nvme, --vfio) and %d disks (--disk)"
                   % (NVME_COUNT, DISK_COUNT))


def arguments(options, restored):
    """QEMU arguments for the images, and the devices to plug in after a snapshot is restored.

    NVMe drives sit behind root ports; a PCI rescan in the VM finds virtio-blk disks."""
    words, plugged = [], []
    for i, spec in enumerate(options.nvme + options.vfio):
        words += ["-drive", "if=none,id=n%d,%s" % (i, image(spec))]
        device = {"driver": "nvme", "id": "nvme%d" % i, "drive": "n%d" % i, "serial": "lab%d" % i,
                  "bus": "rp%d" % i, "max_ioqpairs": 8, "msix_qsize": 9}
        if restored:
            plugged.append(device)
        else:
            words += ["-device", json.dumps(device)]
    for i, spec in enumerate(options.disk):
        words += ["-drive", "if=none,id=d%d,%s" % (i, image(spec)), "-device",
                  "virtio-blk-pci,drive=d%d,bus=pcie.0,addr=0x%x" % (i, DISK_SLOT + i)]
    return words, plugged


def image(spec):
    """FILE[,option=...], or a size such as 64M for a scratch disk that forgets its writes."""
    if re.fullmatch(r"\d+[MG]", spec):
        return "driver=null-co,read-zeroes=on,size=" + spec
    path, _, options = spec.partition(",")
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Fail("image %s: %s" % (path, error.strerror))
    return "file=%s,format=%s,cache.direct=off%s" % (
        comma(os.path.abspath(path)), "qcow2" if magic == b"QFI\xfb" else "raw",
        "," + options if options else "")
