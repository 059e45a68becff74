"""What a command costs."""

import os
import subprocess
import time


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds, those of computing time, and its peak memory in MB.

    A process begins with as much as the one that starts it has at that moment: keep that small.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status  # reaped already
    assert status == 0, f"{command} failed"
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
    }
