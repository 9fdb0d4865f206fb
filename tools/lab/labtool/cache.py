"""The cache folder: $LAB_CACHE, else ~/.cache/pollux/lab."""
import contextlib
import fcntl
import os

from .command import say

ROOT = os.path.realpath(os.environ.get("LAB_CACHE") or os.path.expanduser("~/.cache/pollux/lab"))


def path(*parts):
    """The path of a file of the cache."""
    return os.path.join(ROOT, *parts)


@contextlib.contextmanager
def locked(name, shared=False, waiting=None):
    """Holds the lock `name`; it goes with the process, however that ends.

    `waiting` is said when somebody else holds the lock."""
    os.makedirs(ROOT, exist_ok=True)
    with open(path(name + ".lock"), "a") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(file, kind)
        yield


def read(file):
    with open(file, "rb") as stream:
        return stream.read()


def write_atomic(file, data, mode=0o644):
    """Writes a file so that others see all of it or nothing."""
    temporary = "%s.%d.tmp" % (file, os.getpid())
    with open(temporary, "wb") as stream:
        stream.write(data)
    os.chmod(temporary, mode)
    os.rename(temporary, file)
