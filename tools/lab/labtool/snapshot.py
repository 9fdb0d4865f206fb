"""Snapshots of a booted VM: memory as a file, device state as a migration stream.

A configuration boots once; later runs map its memory privately and go on from there."""
import contextlib
import glob
import hashlib
import json
import os
import shutil
import time

from . import cache, vm as vm_module
from .command import Fail, say
from .vm import VM

KEPT = 4                         # each is a few hundred MiB


def get(config, manifest):
    """The folder of the snapshot of a configuration; makes it if there is none."""
    folder = folder_of(config, manifest)
    if not os.path.exists(folder + "/state"):
        with cache.locked("snap", waiting="waiting for another lab's snapshot"):
            if not os.path.exists(folder + "/state"):
                make(config, folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return folder


def restore(vm, folder, devices, deadline):
    """Lets a VM that was started with incoming=True go on from a snapshot, with more devices."""
    ignore_shared(vm, deadline)
    vm.qmp("migrate-incoming", deadline, uri="file:" + folder + "/state")
    while vm.qmp("query-status", deadline)["status"] == "inmigrate":
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
        time.sleep(0.005)
    for device in devices:
        vm.qmp("device_add", deadline, **device)
    vm.qmp("cont", deadline)


def discard(config, manifest):
    shutil.rmtree(folder_of(config, manifest), ignore_errors=True)


def clean():
    shutil.rmtree(cache.path("snap"), ignore_errors=True)


def folder_of(config, manifest):
    """Everything that the state depends on is in the name: machine, kernel, QEMU, vm.py."""
    text = json.dumps([config["mem"], config["smp"], config["cpu"], config["append"], manifest,
                       cache.read(vm_module.__file__).decode()])
    return cache.path("snap", hashlib.sha256(text.encode()).hexdigest()[:16])


def make(config, folder):
    """Boots once, stops when the VM says READY, keeps its memory and device state."""
    say("booting the VM once for its snapshot")
    for old in sorted(glob.glob(cache.path("snap/*")), key=os.path.getmtime)[:1 - KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    start = time.monotonic()
    temporary = folder + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    vm = VM(dict(config, out=None), temporary, ram=temporary + "/ram")
    try:
        deadline = start + 240
        vm.wait_ready(deadline)
        vm.qmp("stop", deadline)
        ignore_shared(vm, deadline)
        vm.qmp("migrate", deadline, uri="file:" + temporary + "/state")
        while True:
            status = vm.qmp("query-migrate", deadline)
            if status.get("status") == "completed":
                break
            if status.get("status") in ("failed", "cancelled"):
                raise Fail("snapshot: " + json.dumps(status))
            if time.monotonic() > deadline:
                raise Fail("snapshot: it took too long")
            time.sleep(0.02)
    finally:
        vm.kill()
    os.rename(temporary, folder)
    say("snapshot made in %.0f s" % (time.monotonic() - start))


def ignore_shared(vm, deadline):
    """Memory that is a shared file stays out of the stream."""
    vm.qmp("migrate-set-capabilities", deadline, capabilities=[
        {"capability": "x-ignore-shared", "state": True}])
