"""rootfs: make an ext4 image of an unmodified Debian system, for a guest to boot from.

The system is this machine's own release from its own apt sources, made by
mmdebstrap: Debian's "minbase" (required packages and apt) and what --include
names, nothing changed in them.  --script FILE is added as
/usr/local/sbin/pollux-demo: boot with init=/usr/local/sbin/pollux-demo, for
there is no other init.

  rootfs root.img 512M --script demo.sh

Systems and images are cached under LAB_CACHE (default ~/.cache/pollux/lab) by
all that they are made from; OUT is a sparse copy, so that a guest may write to
it.  Needs root.
"""
import argparse
import glob
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time

from . import cache, command
from .apt import Apt, release_codename, release_sources
from .cli import guarded
from .command import Fail, say, sh

FORMAT = 1                       # raise it when the same arguments make something else
SCRIPT = "/usr/local/sbin/pollux-demo"
VARIANT, INCLUDE = "minbase", ""
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
KEPT = 4                         # images, and systems
# mmdebstrap leaves the settings it ran apt with, and names of this machine.
TIDY_HOOK = ('rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/resolv.conf; '
             'echo debian >"$1"/etc/hostname')
# The whole image is written now: a guest's kernel has nothing left to zero in the background.
MKE2FS = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "pollux-root",
          "-E", "lazy_itable_init=0,lazy_journal_init=0"]


def main():
    command.program = "rootfs"
    options = parser().parse_args()
    guarded(lambda: make(options))


def make(options):
    """Leaves the image at options.output."""
    start = time.monotonic()
    script = cache.read(options.script) if options.script else None
    with cache.locked("rootfs", waiting="waiting for another rootfs to end"):
        image = cached_image(options, script)
        temporary = "%s.%d.tmp" % (options.output, os.getpid())
        try:
            sh(["cp", "--sparse=always", "--reflink=auto", image, temporary])
            os.rename(temporary, options.output)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    say("%s ready in %.1f s" % (options.output, time.monotonic() - start))
    return 0


def cached_image(options, script):
    """The path of the image in the cache; makes it, and the system it holds, if need be."""
    release = release_codename()
    sources = release_sources(release)
    system = path_of("system", ".tar", release, sources, options.variant, options.include,
                     TIDY_HOOK)
    image = path_of("image", ".img", system, options.size, script, MKE2FS)
    if options.force or not os.path.exists(image):
        if os.geteuid() != 0:
            raise Fail("must be run as root: the files in the image belong to root")
        install_tools()
        if options.force or not os.path.exists(system):
            make_system(system, release, sources, options)
        os.utime(system)
        make_image(image, system, options.size, script)
        for kind in ("system-*", "image-*"):
            for old in sorted(glob.glob(cache.path("rootfs", kind)), key=os.path.getmtime)[:-KEPT]:
                os.unlink(old)
    os.utime(image)
    return image


def path_of(kind, suffix, *recipe):
    digest = hashlib.sha256(repr((FORMAT,) + recipe).encode()).hexdigest()[:16]
    return cache.path("rootfs", "%s-%s%s" % (kind, digest, suffix))


def install_tools():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        Apt().install(*missing)


def make_system(tar, release, sources, options):
    """A Debian system as a tar file."""
    extra = " with " + options.include if options.include else ""
    say("making a Debian %s system (%s%s)" % (release, options.variant, extra))
    start = time.monotonic()
    os.makedirs(os.path.dirname(tar), exist_ok=True)
    temporary = tar + ".tmp"
    words = ["mmdebstrap", "--format=tar", "--variant=" + options.variant,
             "--customize-hook=" + TIDY_HOOK]
    words += ["--include=" + options.include] if options.include else []
    words += ["--aptopt=" + setting for setting in machine_settings()]
    follow(words + [release, temporary] + sources)
    os.rename(temporary, tar)
    say("system made in %.0f s, %d MiB" % (time.monotonic() - start, os.stat(tar).st_size >> 20))


def machine_settings():
    """This machine's apt settings without which its mirrors may not answer."""
    kept = re.compile(r'^(Acquire::(?:Check-\w[\w-]*|https?::(?:\S+::)?Proxy\S*) "[^"]+";)$', re.M)
    return kept.findall(sh(["apt-config", "dump"]).decode()) + [
        'Acquire::Retries "3";', 'Acquire::Languages "none";']


def follow(words):
    """Runs mmdebstrap; its stages become progress lines."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, errors="replace",
                               env=dict(os.environ, LC_ALL="C", TMPDIR=cache.ROOT))
    said = []
    for line in process.stderr:
        said.append(line)
        stage = re.match(r"I: (running apt-get update|downloading|extracting|installing)[^.]*",
                         line)
        if stage:
            say(stage[0][3:].strip())
    if process.wait():
        raise Fail("mmdebstrap: exit status %d\n%s" % (process.returncode, "".join(said[-40:])))


def make_image(image, tar, size, script):
    """An ext4 image of the system in a tar file, with the script."""
    say("making an ext4 image of", size)
    temporary = image + ".tmp"
    with tempfile.TemporaryDirectory(dir=cache.path("rootfs")) as tree:
        # tempfile makes the folder for its owner alone; it becomes the image's root.
        os.chmod(tree, 0o755)
        sh(["tar", "-xpf", tar, "-C", tree, "--numeric-owner", "--xattrs",
            "--xattrs-include=*"])
        if script is not None:
            cache.write_atomic(tree + SCRIPT, script, 0o755)
        if os.path.exists(temporary):
            os.unlink(temporary)
        sh(MKE2FS + ["-d", tree, temporary, size])
    os.rename(temporary, image)


def parser():
    top = argparse.ArgumentParser(prog="rootfs", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("output", metavar="OUT")
    top.add_argument("size", metavar="SIZE", type=image_size, help="such as 512M or 2G (binary)")
    top.add_argument("--script", metavar="FILE", help="a program to add as " + SCRIPT)
    top.add_argument("--include", metavar="PACKAGE,...", default=INCLUDE,
                     help="packages beside the variant's; default: none")
    top.add_argument("--variant", default=VARIANT, choices=("essential", "minbase"),
                     help="essential lacks apt, mount and e2fsprogs; default %(default)s")
    top.add_argument("--force", action="store_true", help="make it again, with today's packages")
    return top


def image_size(text):
    if not re.fullmatch(r"[1-9]\d*[MG]", text):
        raise argparse.ArgumentTypeError("%s: write a size such as 512M or 2G" % text)
    return text
