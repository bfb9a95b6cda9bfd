"""What the chaos test does to one daemon's machine: its clock jumps, its disk is full."""

import glob
import json
import os
import pathlib
import resource
import subprocess
import time

PRELOADED_CLOCK = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)  # Debian: libfaketime
DISK_BYTES = 32 << 20  # more than a busy router logs between two looks at its log


class Clock:
    """The time of day as one daemon sees it; its monotonic clock stays as it is, as when NTP sets a clock."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.offset_s = 0.0
        self.set(0.0)

    @staticmethod
    def possible(program):
        """A sanitizer's runtime must come before every preloaded library."""
        data = pathlib.Path(program).read_bytes()
        return PRELOADED_CLOCK is not None and b"__asan_init" not in data and b"__tsan_init" not in data

    def environment(self):
        return {"LD_PRELOAD": PRELOADED_CLOCK, "FAKETIME_TIMESTAMP_FILE": str(self.path), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}

    def set(self, offset_s):
        new = self.path.with_suffix(".new")
        new.write_text(f"{offset_s:+.3f}\n")
        new.rename(self.path)  # never half a number
        self.offset_s = offset_s

    @staticmethod
    def forget(pid):
        """The library leaves these behind when its process is killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            pathlib.Path("/dev/shm", name).unlink(missing_ok=True)


class Disk:
    """A folder that can be full: a file system of its own where mounting is allowed, else a limit on the process's files."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.ballast = self.folder / "ballast"
        self.mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "updraft-chaos", str(self.folder)],
                                      capture_output=True).returncode == 0

    def fill(self, pid):
        if not self.mounted:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
            return
        out = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (65536, 4096, 1):  # to the last byte
                try:
                    while True:
                        os.write(out, b"x" * size)
                except OSError:
                    pass
        finally:
            os.close(out)

    def free(self, pid):
        if not self.mounted:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            return
        self.ballast.unlink(missing_ok=True)

    def close(self):
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True)


class LogFile:
    """JSON lines of one daemon, read as they come and cut off as logrotate's copytruncate does."""

    JUMPED_S = 600  # a line whose time is further off was written under a jumped clock

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.at = 0
        self.torn = []  # lines that are none
        self.lines_read = 0
        self.jumped_lines = 0

    def read(self, cut=False):
        """Takes in what is new, whole lines only; cut: and makes the file empty."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        values = []
        for line in whole.splitlines():
            self.lines_read += 1
            try:
                values.append(json.loads(line))
            except ValueError:
                self.torn.append(line)
                continue
            if abs(seconds_of(values[-1]["time"]) - time.time()) > self.JUMPED_S:
                self.jumped_lines += 1
        if cut and self.at == self.path.stat().st_size:
            os.truncate(self.path, 0)
            self.at = 0
        return values


def seconds_of(text):
    """Of "2026-01-31T23:59:59.123+00:00" or "...Z"."""
    import datetime

    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
