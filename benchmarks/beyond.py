"""What does it cost to go beyond one machine and its disk? The same photos, the same model, in
turns.

    python -m benchmarks.beyond PHOTOS --images 1000 --rounds 3 [--only ray|nodes|store]

ray      --engine ray on one node with all cores / the local engine; the cluster runs already
nodes    two Ray nodes of one core each / one; every process is pinned to its node's core. Seconds from plan to
         table, as the run itself counts them for its images/s: the driver's start is the same for
         both
store    photos in S3, a server on this machine made --latency-ms far away / the same photos on disk

Every contender is a whole process, from start to the table on disk. Needs label-images[test]. The
last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.latency import FarStore, far_away
from benchmarks.models import make_models
from benchmarks.photos import make_photos
from tests.store_server import CREDENTIALS, client, s3_server, upload

ARCH = "vit_tiny_patch16_224"
_RAY_STARTS_S = 10  # for how long a new node's own processes take a core

Commands = dict[str, Callable[[], float]]


def label(
    photos: str, work: Path, name: str, *options: str, env: dict[str, str] | None = None
) -> float:
    """Label photos in a process of its own, everything anew; return the seconds it took by its own
    account.
    """
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        photos,
        "--out",
        str(work / f"{name}.parquet"),
        "--quiet",
    ]
    command += ["--model", str(work / "bundle"), "--restart", "--audit", "0", *options]
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )
    if ran.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{ran.stderr}")
    return float(json.loads((work / f".{name}.parquet.job" / "run.json").read_text())["seconds"])


@contextmanager
def cluster(nodes: list[set[int]]) -> Iterator[Any]:
    """A Ray cluster of nodes that have these cores and use no others; yield its
    ray.cluster_utils.Cluster.
    """
    from ray.cluster_utils import Cluster

    before = os.sched_getaffinity(0)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for cores in nodes:
            os.sched_setaffinity(0, cores)  # what the node's processes inherit
            started.add_node(num_cpus=len(cores))
        os.sched_setaffinity(0, before)
        time.sleep(_RAY_STARTS_S)
        yield started
    finally:
        started.shutdown()


def measure(
    commands: Commands, rounds: int, by_own_account: bool = False
) -> dict[str, list[float]]:
    """Run commands in turns; the first round, which fills caches, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for round_ in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            own = command()
            if round_:
                seconds[name].append(own if by_own_account else time.perf_counter() - started)
    return seconds


def measure_ray(photos: Path, work: Path, rounds: int) -> dict[str, list[float]]:
    with cluster([os.sched_getaffinity(0)]) as ray:
        return measure(
            {
                "local": lambda: label(str(photos), work, "local"),
                "ray": lambda: label(
                    str(photos), work, "ray", "--engine", "ray", "--ray-address", ray.address
                ),
            },
            rounds,
        )


def measure_nodes(photos: Path, work: Path, rounds: int) -> dict[str, list[float]]:
    cores = sorted(os.sched_getaffinity(0))[:2]

    def on(n: int) -> float:
        with cluster(
            [{core} for core in cores[:n]]
        ) as ray:  # one cluster at a time: two would share the cores
            return label(
                str(photos),
                work,
                "nodes",
                "--engine",
                "ray",
                "--ray-address",
                ray.address,
                "--workers",
                "1",
            )

    return measure(
        {"1 node of one core": lambda: on(1), "2 nodes": lambda: on(2)}, rounds, by_own_account=True
    )


def measure_store(
    photos: Path, work: Path, rounds: int, latency_s: float
) -> dict[str, list[float]]:
    with s3_server() as port, far_away(FarStore(photos, "/photos/all/", port, latency_s)) as far:
        s3 = client(port)
        s3.create_bucket(Bucket="photos")
        upload(s3, photos, "photos", "all")
        env = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{far}"}
        return measure(
            {
                "disk": lambda: label(str(photos), work, "disk"),
                "store": lambda: label("s3://photos/all", work, "store", env=env),
            },
            rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--only", choices=["ray", "nodes", "store"])
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = make_photos(arguments.source, "small", arguments.images, work)
        make_models(ARCH, work)
        for what, measured in (
            ("ray", lambda: measure_ray(photos, work, arguments.rounds)),
            ("nodes", lambda: measure_nodes(photos, work, arguments.rounds)),
            (
                "store",
                lambda: measure_store(photos, work, arguments.rounds, arguments.latency_ms / 1000),
            ),
        ):
            if arguments.only in (None, what):
                seconds = measured()
                medians = {name: statistics.median(times) for name, times in seconds.items()}
                first, second = medians.values()
                by_round = [round(b / a, 3) for a, b in zip(*seconds.values(), strict=True)]
                for name, times in seconds.items():
                    print(
                        f"{what:<6} {name:<20} {medians[name]:7.2f} s  "
                        f"{min(times):.2f}..{max(times):.2f}"
                    )
                print(
                    f"{what:<6} second / first: {second / first:.3f}, first / second: "
                    f"{first / second:.2f}"
                )
                print(
                    f"{what:<6} second / first, round by round: {by_round}, median "
                    f"{statistics.median(by_round):.3f}"
                )
                results[what] = {
                    "median_s": medians,
                    "ratio": round(second / first, 3),
                    "by_round": by_round,
                }
    print(json.dumps({"benchmark": "beyond", "arch": ARCH, "images": arguments.images, **results}))


if __name__ == "__main__":
    main()
