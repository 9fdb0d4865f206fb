"""Filling the cache: kernels, modules, busybox, and QEMU on the machine."""
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import time

from . import cache, initramfs, kernel_modules
from .apt import Apt
from .command import Fail, say
from .kernel_image import extract_vmlinux

QEMU = "qemu-system-x86_64"
QEMU_OLDEST = (8, 2)             # the first that migrates to a file
FORMAT = 2                       # raise it when what is left in the cache changes
KERNELS = {"l1": ("linux-image-amd64", kernel_modules.L1_MODULES),
           "l2": ("linux-image-cloud-amd64", kernel_modules.L2_MODULES)}
L2_IMAGE_MODULES = initramfs.L2_RUN_MODULES + ["virtio-rng", "ext4", "crc32c_generic"]


@contextlib.contextmanager
def prepared(force=False):
    """Holds the cache ready, and unchanged by others, while the caller uses it.

    Gives the manifest: {"l1": kernel release, "l2": kernel release, "recipe", "qemu"}. Users share
    the lock, so that runs go in parallel; only filling the cache waits for them to end."""
    while True:
        with cache.locked("cache", shared=True, waiting="waiting for another lab to prepare"):
            manifest = read_manifest()
            if is_current(manifest) and not force:
                yield manifest
                return
        with cache.locked("cache", waiting="waiting for other labs to end, to prepare"):
            if force or not is_current(read_manifest()):
                fill()
        force = False


def read_manifest():
    with contextlib.suppress(OSError, ValueError):
        return json.loads(cache.read(cache.path("ready.json")))
    return None


def is_current(manifest):
    return bool(manifest) and manifest["recipe"] == recipe() and manifest["qemu"] == qemu_stamp()


def recipe():
    """What the cache is made from: a change of it makes `prepare` run again."""
    scripts = [initramfs.guest_file(name) for name in sorted(os.listdir(initramfs.GUEST))]
    text = repr((FORMAT, KERNELS, initramfs.L1_PRELOAD, L2_IMAGE_MODULES, scripts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fill():
    """Makes the cache from scratch. The caller holds its lock."""
    if os.uname().machine != "x86_64":
        raise Fail("this needs an x86-64 machine, not " + os.uname().machine)
    start = time.time()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(cache.path("ready.json"))
    apt = Apt()
    install_tools(apt)
    manifest = {"recipe": recipe(), "qemu": qemu_stamp()}
    for name, (meta, modules) in KERNELS.items():
        manifest[name] = fetch_kernel(apt, name, meta, modules)
    fetch_busybox(apt)
    cache.write_atomic(cache.path("l1/initrd"), initramfs.l1(manifest))
    for name, modules in (("initrd", []), ("initrd-mmio", ["virtio_mmio"])):
        image = initramfs.l2(manifest, L2_IMAGE_MODULES + modules)
        cache.write_atomic(cache.path("l2", name), image)
    cache.write_atomic(cache.path("l2/initrd-root"), initramfs.l2(
        manifest, initramfs.L2_ROOT_MODULES, switch_root=True))
    shutil.rmtree(cache.path("snap"), ignore_errors=True)
    cache.write_atomic(cache.path("ready.json"), json.dumps(manifest).encode())
    say("ready in %.0f s: L1 %s, L2 %s, QEMU %s" % (
        time.time() - start, manifest["l1"], manifest["l2"], ".".join(map(str, qemu_version()))))


def install_tools(apt):
    missing = [] if shutil.which("zstd") else ["zstd"]
    if qemu_version() < QEMU_OLDEST:
        missing.append("qemu-system-x86")
    if missing:
        apt.install(*missing)
    if qemu_version() < QEMU_OLDEST:
        raise Fail("%s %s is still too old (or missing) after installing qemu-system-x86: this "
                   "needs %s or later" % (QEMU, *[".".join(map(str, version)) for version in
                                                  (qemu_version(), QEMU_OLDEST)]))


def fetch_kernel(apt, name, meta, modules):
    """Leaves a kernel, as bzImage and ELF, and its modules in the cache; returns its release."""
    package = apt.kernel_package(meta)
    say("unpacking", package)
    tree, folder = cache.path("unpack"), cache.path(name)
    for each in (tree, folder):
        shutil.rmtree(each, ignore_errors=True)
    os.makedirs(folder)
    apt.unpack(package, tree)
    bzimage, = glob.glob(tree + "/boot/vmlinuz-*")
    release = os.path.basename(bzimage)[len("vmlinuz-"):]
    shutil.copy(bzimage, folder + "/vmlinuz")
    shutil.copy(glob.glob(tree + "/boot/config-*")[0], folder + "/config")
    cache.write_atomic(folder + "/vmlinux", extract_vmlinux(bzimage))
    installed = glob.glob(tree + "/lib/modules/*") + glob.glob(tree + "/usr/lib/modules/*")
    kernel_modules.keep(installed[0], "%s/modules/%s" % (folder, release), modules)
    shutil.rmtree(tree)
    return release


def fetch_busybox(apt):
    say("unpacking busybox-static")
    tree = cache.path("unpack")
    apt.unpack("busybox-static", tree)
    shutil.copy(glob.glob(tree + "/**/bin/busybox", recursive=True)[0], cache.path("busybox"))
    shutil.rmtree(tree)


def qemu_version():
    """(major, minor, patch) of the QEMU on this machine; (0,) if there is none."""
    with contextlib.suppress(OSError):
        text = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE).stdout.decode()
        match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
        if match:
            return tuple(map(int, match.groups()))
    return (0,)


def qemu_stamp():
    """Which QEMU binary this is, without running it."""
    path = shutil.which(QEMU)
    if not path:
        return None
    status = os.stat(path)
    return [path, status.st_size, status.st_mtime_ns]
