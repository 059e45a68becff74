"""A small disk that one process of the command sees mounted, as Python that runs `before` it
(conftest.py's `process`): it mounts a file system in a namespace of its own.
"""

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

# A process that was just forked has one thread: only such a one may have its own user namespace.
_MOUNT = """
import atexit, ctypes, os, subprocess
NEW_MOUNTS, NEW_USERS = 0x20000, 0x10000000
libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
if libc.unshare(NEW_USERS | NEW_MOUNTS):
    raise OSError(ctypes.get_errno(), "unshare")
for name, text in ("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1"):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
def shell(line):
    subprocess.run(["sh", "-ec", line], check=True)
"""


def with_mount(where: Path | str, size: str, after: str = "", before: str = "") -> str:
    """Python that mounts a small file system somewhere for the process that runs it; `before` and
    `after` what it then does, commands.
    """
    if not _may_mount():
        pytest.skip("this system lets nobody mount a small disk")
    # Nothing reaches the machine's own mounts.
    mount = f"mount --make-rprivate /\nmount -t tmpfs -o size={size} tmpfs {where}\n{before}"
    return f"{_MOUNT}shell({mount!r})\natexit.register(shell, {after!r})\n"


def copied(folder: Path, to: Path) -> str:
    """A command that leaves a copy of a folder, and nothing of an earlier one."""
    return f"rm -rf {to}\ncp -a {folder} {to}"


@functools.cache
def _may_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    mount = ["mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    words = ["unshare", "--user", "--map-root-user", "--mount", *mount]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
