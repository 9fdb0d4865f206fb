"""`lab run`: one VM for one command; its output and its status."""
import glob
import os
import re
import select
import shutil
import subprocess
import tempfile
import time

from . import cache, drives, job, snapshot
from .command import FAILED, Fail, say
from .prepare import prepared
from .vm import VM, tail

TIMED_OUT = 124
BROKEN_PIPE = 141                # as a shell reports a command that SIGPIPE ended
STALE_S = 6 * 3600               # a run's folder older than this was left by a killed `lab`


class Restart(Exception):
    """A restored VM did not answer: try once more with a cold boot."""


def run(options, command):
    """Runs a command in a VM and returns its exit status."""
    start = time.monotonic()
    drives.check(options)
    job.check(options)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
    with prepared() as manifest:
        return Run(options, command, manifest, start).go()


class Run:
    """One run: at most two VMs, the second one booted cold."""

    def __init__(self, options, command, manifest, start):
        self.options, self.command, self.manifest, self.start = options, command, manifest, start
        self.config = {"mem": options.mem, "smp": options.smp, "cpu": options.cpu,
                       "append": options.append,
                       "out": os.path.realpath(options.out) if options.out else None}

    def go(self):
        os.makedirs(cache.path("run"), exist_ok=True)
        sweep()
        if self.options.cold:
            return self.in_folder(self.cold)
        try:
            return self.in_folder(self.warm)
        except Restart as reason:
            say("%s\nlab: trying again with a cold boot" % reason)
        status = self.in_folder(self.cold)
        snapshot.discard(self.config, self.manifest)   # a cold boot did what it could not
        return status

    def in_folder(self, attempt):
        """One attempt, with a folder of its own for logs and the script."""
        folder = tempfile.mkdtemp(prefix="r", dir=cache.path("run"))
        try:
            return attempt(folder)
        finally:
            if self.options.keep:
                say("kept", folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def warm(self, folder):
        try:
            state = snapshot.get(self.config, self.manifest)
        except (Fail, TimeoutError) as error:
            raise Restart("no snapshot: %s" % error)
        words, plugged = drives.arguments(self.options, restored=True)
        vm = VM(self.config, folder, words, ram=state + "/ram", incoming=True)
        try:
            try:
                snapshot.restore(vm, state, plugged, time.monotonic() + 30)
            except (Fail, TimeoutError, OSError) as error:
                raise Restart("restoring the snapshot failed: %s" % error)
            if not self.started(vm):
                raise Restart(self.not_started)
            return self.finish(vm)
        finally:
            vm.kill()

    def cold(self, folder):
        words, _ = drives.arguments(self.options, restored=False)
        vm = VM(self.config, folder, words)
        try:
            vm.wait_ready(time.monotonic() + 240)
            if not self.started(vm):
                raise Fail(self.not_started)
            return self.finish(vm)
        finally:
            vm.kill()

    def started(self, vm):
        """Hands the VM its script; true once the command runs."""
        with open(vm.folder + "/ctl/job", "w") as file:
            file.write(job.script(self.options, self.command))
        try:
            vm.socket["ctl"].sendall(b"GO %d\n" % int(time.time()))
            line = vm.line("ctl", time.monotonic() + 60)
        except (TimeoutError, OSError) as error:
            line = str(error)
        if line == "RUN":
            self.log("command started")
            return True
        self.not_started = "the VM did not start the command (%s): %s\n%s" % (
            line, vm.why(), tail(vm.console))
        return False

    def finish(self, vm):
        status = relay(vm, time.monotonic() + self.options.timeout, self.options.console)
        self.log("command ended with %s" % status)
        return status

    def log(self, text):
        if self.options.verbose:
            say("%s after %.2f s" % (text, time.monotonic() - self.start))


def relay(vm, deadline, show_console):
    """Copies the command's output until it exits; returns its status."""
    ends = {vm.socket["out"]: 1, vm.socket["err"]: 2}
    live = set(ends) | {vm.socket["ctl"]}
    console = open(vm.console, "rb") if show_console else None
    status, said = None, vm.buffer["ctl"]
    while live:
        left = deadline - time.monotonic()
        if status is not None:
            left = 0.05           # the rest of what the command wrote
        elif left <= 0:
            say("timeout; the VM's console ends:\n" + tail(vm.console))
            return TIMED_OUT
        ready = select.select(live, [], [], min(left, 0.2 if console else 1))[0]
        if console:
            os.write(2, console.read())
        if not ready and status is not None:
            break
        for end in ready:
            data = receive(end)
            if not data:
                live.discard(end)
            elif end in ends:
                if not write_all(ends[end], data):
                    return BROKEN_PIPE
            else:
                said += data
                match = re.search(rb"^EXIT (\d+)\s*$", said, re.M)
                status = int(match[1]) if match else None
        if status is None and not live & set(ends) and vm.socket["ctl"] not in live:
            break
    if status is None:
        vm.process.poll()
        say("the VM died before the command ended: %s\n%s" % (vm.why(), tail(vm.console)))
        return FAILED
    shut_down(vm)
    return status


def receive(end):
    try:
        return end.recv(1 << 16)
    except ConnectionResetError:
        return b""


def write_all(descriptor, data):
    try:
        while data:
            data = data[os.write(descriptor, data):]
        return True
    except BrokenPipeError:
        return False


def shut_down(vm):
    """Lets the images' last writes reach their files."""
    try:
        vm.qmp("quit", time.monotonic() + 20)
        vm.process.wait(20)
    except (Fail, TimeoutError, OSError, subprocess.TimeoutExpired):
        pass


def sweep():
    for folder in glob.glob(cache.path("run/*")):
        try:
            if time.time() - os.path.getmtime(folder) > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue              # its own run removed it just now
