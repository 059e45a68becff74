"""How much later a command labels where the Hub does not answer: against `--model embedded`.

    python -m benchmarks.offline_start

Runs the command on one photo without a table, in turn with --model embedded, with HF_HUB_OFFLINE=1,
with a Hub that refuses connections, and with one that takes them and never answers; with an empty
cache. Prints the median and the spread of the seconds from start to end, and as a last line JSON.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "coffee.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    runs: int = parser.parse_args().runs
    seconds: dict[str, list[float]] = {}
    with socket.socket() as silent, tempfile.TemporaryDirectory() as cache:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        never = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ways: dict[str, tuple[list[str], dict[str, str]]] = {
            "embedded": (["--model", "embedded"], {}),
            "HF_HUB_OFFLINE": ([], {"HF_HUB_OFFLINE": "1"}),
            "refused": ([], {"HF_ENDPOINT": "http://127.0.0.1:9"}),
            "never answers": ([], {"HF_ENDPOINT": never}),
        }
        for _ in range(runs + 1):  # the first warms the disk's cache
            for name, (words, more) in ways.items():
                environment = {**os.environ, "HF_HOME": cache, **more}
                started = time.perf_counter()
                command = [sys.executable, "-m", "pipeline.cli", str(PHOTO), *words]
                subprocess.run(command, env=environment, check=True, capture_output=True)
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        later = medians[name] - medians["embedded"]
        spread = f"{min(taken[1:]):.2f} to {max(taken[1:]):.2f}"
        print(f"{name:<15} {medians[name]:6.2f} s ({spread}), {later:+.2f} s")
    print(json.dumps({name: round(median, 3) for name, median in medians.items()}))


if __name__ == "__main__":
    main()
