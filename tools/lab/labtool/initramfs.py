"""initramfs images: of L1, the lab's VM, and of L2, a guest that runs in it."""
import os
import stat

from . import cache, kernel_modules

GUEST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest")
# Loaded before the snapshot is taken; the rest is there for modprobe.
L1_PRELOAD = "9p 9pnet_virtio overlay kvm-amd tun loop virtio_blk ext4 crc32c_generic".split()
L2_RUN_MODULES = "virtio_pci virtio_blk virtio_net virtio_console".split()
L2_ROOT_MODULES = "virtio_pci virtio_mmio virtio_blk ext4 crc32c_generic".split()


class Cpio:
    """A cpio archive in "newc" format (Linux: driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.parts, self.seen, self.inode = [], set(), 0

    def directory(self, path):
        path = path.strip("/")
        if path and path not in self.seen:
            self.directory(os.path.dirname(path))
            self.seen.add(path)
            self._add(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o755):
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path, major, minor):
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def done(self):
        """The archive's bytes."""
        self._add("TRAILER!!!", 0)
        data = b"".join(self.parts)
        return data + b"\0" * (-len(data) % 512)

    def _entry(self, path, mode, data=b"", device=(0, 0)):
        path = path.strip("/")
        self.directory(os.path.dirname(path))
        self._add(path, mode, data, device)

    def _add(self, name, mode, data=b"", device=(0, 0)):
        self.inode += 1
        name = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0) + device + (len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]


def l1(manifest):
    """The VM's own image. `manifest` names the kernels (see prepare)."""
    image = Cpio()
    for folder in "dev proc sys host ctl out rw newroot root modules sbin tmp lib".split():
        image.directory(folder)
    add_base(image, "l1", manifest["l1"], L1_PRELOAD, guest_file("l1-init.sh"))
    image.link("sbin/modprobe", "/bin/busybox")
    modules = "/host" + cache.path("l1/modules")
    image.link("lib/modules", modules)
    fstab = guest_file("l1-fstab.9p").replace(b"MODULES", modules.encode())
    image.file("fstab.9p", fstab, 0o644)
    return image.done()


def l2(manifest, modules, run=None, switch_root=False, files=()):
    """A guest's image: loads modules, then runs the script `run` and powers off, or goes over
    to the root that its kernel command line names. `files` are (source, destination) pairs."""
    image = Cpio()
    for folder in "dev proc sys mnt tmp modules".split():
        image.directory(folder)
    add_base(image, "l2", manifest["l2"], modules, guest_file("l2-init.sh"))
    if switch_root:
        image.file("switch-root", guest_file("l2-switch-root.sh"))
    else:
        image.file("run", guest_file("l2-run.sh") if run is None else run)
    for source, destination in files:
        image.file(destination, cache.read(source), stat.S_IMODE(os.stat(source).st_mode))
    return image.done()


def add_base(image, kind, release, modules, init):
    """What both images have: a console, busybox, modules and the order they load in, init."""
    image.character_device("dev/console", 5, 1)
    image.file("bin/busybox", cache.read(cache.path("busybox")))
    folder = cache.path(kind, "modules", release)
    order = kernel_modules.load_order(folder, modules)
    for name in order:
        image.file("modules/" + name, cache.read(os.path.join(folder, name)), 0o644)
    image.file("modules/order", " ".join(order).encode(), 0o644)
    image.file("init", init)


def guest_file(name):
    return cache.read(os.path.join(GUEST, name))
