"""Running other programs, progress lines, and the error that ends the lab."""
import os
import subprocess
import sys

FAILED = 125            # exit status: the lab itself failed, not the command in it
program = "lab"         # the name in front of progress and error lines


class Fail(Exception):
    """The lab itself failed: the message says what, and what to do about it."""


def say(*words):
    """One progress line on standard error."""
    print(program + ":", *words, file=sys.stderr, flush=True)


def sh(command, **options):
    """Runs a program to its end and returns its standard output; Fail with its words otherwise."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, **options)
    except OSError as error:
        raise Fail("cannot run %s: %s" % (command[0], error.strerror))
    if done.returncode:
        raise Fail("%s: exit status %d\n%s" % (" ".join(map(str, command)), done.returncode,
                   (done.stdout + done.stderr)[-3000:].decode(errors="replace").strip()))
    return done.stdout


def require_root_to_install(packages, suite):
    """Fail, unless root, with the packages that somebody else has to install."""
    if os.geteuid() != 0:
        names = " ".join(packages)
        raise Fail("not installed: %s. As root: lab prepare, or apt-get install -t %s %s (with "
                   "that suite in the apt sources)" % (names, suite, names))
