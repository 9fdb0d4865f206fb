"""Debian packages from the machine's own mirrors."""
import contextlib
import glob
import os
import re
import tempfile

from . import cache
from .command import Fail, require_root_to_install, say, sh


class Apt:
    """apt with sources and lists of its own, so that the machine's stay as they are.

    They name the machine's own mirrors. On bookworm the backports suite is added beside the
    release's, for its QEMU is too old; the machine's own sources may not name that suite."""

    def __init__(self):
        self.codename = release_codename()
        self.suite = self.codename
        if self.codename == "bookworm":
            self.suite += "-backports"
        root = cache.path("apt")
        for folder in ("lists/partial", "archives/partial", "parts"):
            os.makedirs(os.path.join(root, folder), exist_ok=True)
        lines = release_sources(self.codename, self.suite)
        sources = os.path.join(root, "sources.list")
        cache.write_atomic(sources, ("\n".join(lines) + "\n").encode())
        parts = os.path.join(root, "parts")
        settings = {
            "Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": parts,
            "Dir::Etc::PreferencesParts": parts, "Dir::State::Lists": root + "/lists",
            "Dir::Cache": root, "APT::Sandbox::User": "root", "Acquire::Retries": "3",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false"}
        self.options = [word for key, value in settings.items()
                        for word in ("-o", "%s=%s" % (key, value))]
        self.updated = False

    def run(self, tool, *arguments, **options):
        """apt-get or apt-cache with these sources; fetches the lists the first time."""
        if not self.updated:
            say("fetching package lists")
            sh(["apt-get"] + self.options + ["-q", "update"])
            self.updated = True
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C")
        return sh([tool] + self.options + list(arguments), env=environment, **options).decode()

    def install(self, *packages):
        """Installs packages on the machine; Fail with their names unless root."""
        require_root_to_install(packages, self.suite)
        say("installing", *packages)
        self.run("apt-get", "-y", "-q", "--no-install-recommends",
                 "-o", "Dpkg::Use-Pty=0", "-t", self.suite, "install", *packages)

    def unpack(self, package, folder):
        """Downloads a package (nothing is installed) and unpacks it. Needs no root."""
        with tempfile.TemporaryDirectory(dir=cache.ROOT) as download:
            self.run("apt-get", "-q", "-t", self.suite, "download", package, cwd=download)
            sh(["dpkg-deb", "-x", glob.glob(download + "/*.deb")[0], folder])

    def kernel_package(self, meta):
        """The package that a meta package such as linux-image-amd64 stands for."""
        text = self.run("apt-cache", "-o", "APT::Default-Release=" + self.suite,
                        "show", "--no-all-versions", meta)
        depends = re.search(r"^Depends:.*?\b(linux-image-\S+)", text, re.M)
        if not depends:
            raise Fail("%s: no such package in %s" % (meta, self.suite))
        return depends[1].rstrip(",")


def release_codename():
    """Debian's name of this machine's release, such as bookworm."""
    with contextlib.suppress(OSError), open("/etc/os-release") as file:
        match = re.search(r"^VERSION_CODENAME=\"?(\w+)", file.read(), re.M)
        if match:
            return match[1]
    raise Fail("no VERSION_CODENAME in /etc/os-release: this needs a Debian machine")


def release_sources(codename, extra=None):
    """The machine's sources of this release as lines of a sources.list, `extra` suite added."""
    lines = []
    for uri, suites, components, options in machine_sources():
        ours = [suite for suite in suites if suite == codename
                or suite.startswith(codename + "-") and (extra or "-backports" not in suite)]
        if "main" not in components or not ours:
            continue
        if extra and codename in ours and extra not in ours:
            ours.append(extra)
        option = "[%s] " % options if options else ""
        lines += ["deb %s%s %s main" % (option, uri, suite) for suite in ours]
    wanted = " %s main" % (extra or codename)
    if not any(line.endswith(wanted) for line in lines):
        raise Fail("none of this machine's apt sources has the suite %s with main" % codename)
    return list(dict.fromkeys(lines))


def machine_sources():
    """(uri, suites, components, options) of each of the machine's own apt sources."""
    for file in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")):
        with open(file) as stream:
            for paragraph in re.split(r"\n[ \t]*\n", stream.read()):
                yield from deb822_sources(paragraph)
    for file in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*.list")):
        with contextlib.suppress(FileNotFoundError), open(file) as stream:
            for line in stream:
                match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
                if match:
                    options, uri, suite, components = match.groups()
                    yield uri, [suite], components.split(), (options or "").strip()


def deb822_sources(paragraph):
    """The sources of one paragraph of a .sources file (man sources.list, deb822 style)."""
    fields, key = {}, None
    for line in paragraph.split("\n"):
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t" and key:
            fields[key] += " " + line.strip()
        else:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            fields[key] = value.strip()
    if fields.get("enabled", "yes").lower() in ("no", "false"):
        return
    if "deb" not in fields.get("types", "").split():
        return
    # A key may also stand in the paragraph itself; then apt's own keyrings have to do.
    signed = fields.get("signed-by", "")
    for uri in fields.get("uris", "").split():
        yield (uri, fields.get("suites", "").split(), fields.get("components", "").split(),
               "signed-by=" + signed if signed.startswith("/") else "")
