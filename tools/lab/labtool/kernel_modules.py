"""Kernel modules: which are kept of a kernel package, and in what order they load."""
import glob
import lzma
import os
import shutil
import struct

from . import cache
from .command import Fail, say, sh

# Kept for the generic kernel of L1, with what they depend on ...
L1_MODULES = """9p 9pnet_virtio overlay kvm-amd kvm-intel tun tap macvtap veth bridge dummy
vhost-net vhost-vsock vhost_scsi nvme null_blk loop brd nbd scsi_debug ublk_drv dm-mod dm-flakey
dm-delay dm-snapshot vfio-pci vfio_iommu_type1 uio_pci_generic virtio_blk virtio_net virtio_scsi
virtio-rng virtio_balloon virtio_mmio virtio_pmem sd_mod ext4 xfs erofs squashfs isofs
crc32c_generic msr cpuid af_packet xt_MASQUERADE iptable_nat sch_netem pci-stub
vmw_vsock_virtio_transport nvme-tcp nvmet nvmet-tcp nvme-loop fuse pktgen""".split()
# ... and for the cloud kernel that L2 guests boot.
L2_MODULES = """virtio_pci virtio_mmio virtio_blk virtio_net virtio_scsi virtio_console virtio-rng
virtio_balloon virtio_pmem sd_mod ext4 crc32c_generic af_packet vmw_vsock_virtio_transport nvme
overlay virtiofs erofs squashfs xfs""".split()


def keep(tree, folder, wanted):
    """Copies the wanted modules of an unpacked kernel, and what they need, to a folder."""
    files = {key(file): file for file in glob.glob(tree + "/kernel/**/*.ko*", recursive=True)}
    builtin = builtin_names(tree)
    os.makedirs(folder, exist_ok=True)
    depends, aliases = {}, []

    def add(name):
        name = key(name)
        if name in depends or name in builtin:
            return
        if name not in files:
            say("note: this kernel has no module", name)
            return
        data = slim(decompress(files[name]))
        info = modinfo(data)
        depends[name] = []
        for needed in [x for k, v in info if k == "depends" for x in v.split(",") if x]:
            add(needed)
            if key(needed) in depends:
                depends[name].append(key(needed))
        aliases.extend("alias %s %s" % (v, name) for k, v in info if k == "alias")
        cache.write_atomic("%s/%s.ko" % (folder, name), data)

    for name in wanted:
        add(name)
    write_index(tree, folder, depends, aliases)


def load_order(folder, names):
    """File names of modules and what they need, in the order in which to load them.

    Names that the kernel has built in need no file; Fail for a name that is neither."""
    depends = {}
    with open(os.path.join(folder, "modules.dep")) as file:
        for line in file:
            name, _, needed = line.strip().partition(":")
            depends[name] = needed.split()
    builtin = builtin_names(folder)
    order = []
    for name in names:
        file = key(name) + ".ko"
        if file not in depends:
            # The kernel's crypto names, such as crc32c, stand for a generic implementation too.
            if not {key(name), key(name) + "_generic"} & builtin:
                raise Fail("no module %s for this kernel; there are: %s"
                           % (name, " ".join(sorted(f[:-3] for f in depends))))
            continue
        for each in depends[file][::-1] + [file]:
            if each not in order:
                order.append(each)
    return order


def key(name):
    """A module's name as the kernel writes it, from a name or a path."""
    return os.path.basename(name).split(".ko")[0].replace("-", "_")


def builtin_names(folder):
    with open(folder + "/modules.builtin") as file:
        return {key(line.strip()) for line in file}


def write_index(tree, folder, depends, aliases):
    """What modprobe reads, as depmod would write it."""
    def closure(name, out):
        for needed in depends[name]:
            closure(needed, out)
            if needed not in out:
                out.append(needed)
        return out

    with open(folder + "/modules.dep", "w") as file:
        for name in depends:
            # The nearest dependency comes first.
            needed = "".join(" %s.ko" % each for each in reversed(closure(name, [])))
            file.write("%s.ko:%s\n" % (name, needed))
    with open(folder + "/modules.alias", "w") as file:
        file.write("\n".join(aliases) + "\n")
    for name in ("modules.symbols", "modules.softdep"):
        open(os.path.join(folder, name), "w").close()
    shutil.copy(tree + "/modules.builtin", folder)


def decompress(file):
    if file.endswith(".xz"):
        return lzma.decompress(cache.read(file))
    if file.endswith(".zst"):
        return sh(["zstd", "-dcq", file])
    return cache.read(file)


def slim(data):
    """A module without its signature and BTF, both slow to check under emulation."""
    data = bytearray(data)
    magic = b"~Module signature appended~\n"
    if data.endswith(magic):
        length, = struct.unpack_from(">I", data, len(data) - len(magic) - 4)
        del data[len(data) - len(magic) - 12 - length:]
    for name, name_offset, _, _ in elf_sections(bytes(data)):
        if name in (b".BTF", b".BTF.base"):
            data[name_offset:name_offset + 2] = b".X"
    return bytes(data)


def modinfo(data):
    """(key, value) pairs of a module's .modinfo section."""
    for name, _, offset, size in elf_sections(data):
        if name == b".modinfo":
            return [pair.decode(errors="replace").partition("=")[::2]
                    for pair in data[offset:offset + size].split(b"\0") if pair]
    return []


def elf_sections(data):
    """(name, offset of the name, offset, size) of each section of a 64-bit ELF file."""
    table, = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    base = headers[names][4]
    for header in headers:
        at = base + header[0]
        yield data[at:data.index(b"\0", at)], at, header[4], header[5]
