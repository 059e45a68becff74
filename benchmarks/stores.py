"""Which client for object stores? pyarrow.fs, boto3, obstore and this project's own way, in turns.

    python -m benchmarks.stores PHOTOS [--images 1000] [--names 1000000] [--rounds 3]

read    photos of an S3 server on this machine made --latency-ms far away, read whole by 16 threads:
        requests a photo, photos/s, and computing time a photo of the process that reads
range   as `read`, but 1,000 bytes out of the middle, as of an archive's member
list    --names keys, of a server that has nothing else to do: in folders of 1,000, and in one flat
        folder; seconds, computing time and peak memory of the process that lists

Each contender is a process of its own. Needs label-images[test] and arro3-core, for
obstore's listings. The last line is JSON.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.latency import FarStore, far_away
from benchmarks.machine import describe_cpu, load_average
from benchmarks.photos import make_photos
from tests.store_server import CREDENTIALS

_THREADS = 16
_IN_A_FOLDER = 1000
_MIDDLE = 500, 1000  # where, and how many bytes
Get = Callable[[str, tuple[int, int] | None], bytes]


def by_pyarrow() -> Get:
    from pyarrow import fs

    s3, _ = fs.FileSystem.from_uri("s3://photos")

    def get(key: str, part: tuple[int, int] | None) -> bytes:
        with s3.open_input_file(f"photos/{key}") as file:
            start, size = part or (0, file.size())
            return bytes(file.read_at(size, start))

    return get


def by_boto3() -> Get:
    import boto3
    from botocore.config import Config

    s3 = boto3.client("s3", config=Config(max_pool_connections=_THREADS))

    def get(key: str, part: tuple[int, int] | None) -> bytes:
        asked = {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"} if part else {}
        return bytes(s3.get_object(Bucket="photos", Key=key, **asked)["Body"].read())

    return get


def by_obstore() -> Get:
    from obstore.store import S3Store

    s3 = S3Store("photos", client_options={"allow_http": True})

    def get(key: str, part: tuple[int, int] | None) -> bytes:
        if part:
            return s3.get_range(key, start=part[0], length=part[1]).to_bytes()
        return bytes(s3.get(key).bytes().to_bytes())

    return get


def by_ours() -> Get:
    from jobs.storage.object_store import StorePath

    bucket = StorePath("s3://photos")

    def get(key: str, part: tuple[int, int] | None) -> bytes:
        return (bucket / key).read_range(*(part or (0, None)))

    return get


READERS = {"pyarrow.fs": by_pyarrow, "boto3": by_boto3, "obstore": by_obstore, "ours": by_ours}


def read(way: str, keys: list[str], part: tuple[int, int] | None) -> dict[str, float]:
    get = READERS[way]()
    get(keys[0], part)  # connected, and imported
    before, started = cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = [len(data) for data in threads.map(lambda key: get(key, part), keys)]
    seconds = time.perf_counter() - started
    assert all(sizes)
    return {
        "photos_per_s": len(keys) / seconds,
        "cpu_ms": 1000 * (cpu_s() - before) / len(keys),
    }


def list_by_ours() -> int:
    from jobs.storage.object_store import StorePath
    from pipeline.find.walk import walk_store

    unlisted: Any = {}
    n = sum(1 for _ in walk_store(StorePath("s3://photos"), lambda _: True, unlisted))
    assert not unlisted
    return n


def list_by_pyarrow() -> int:
    from pyarrow import fs

    s3, _ = fs.FileSystem.from_uri("s3://photos")
    found = s3.get_file_info(fs.FileSelector("photos", recursive=True))
    return sum(entry.type == fs.FileType.File for entry in found)


def list_by_obstore() -> int:
    from obstore.store import S3Store

    s3 = S3Store("photos", client_options={"allow_http": True})
    return sum(batch.num_rows for batch in s3.list(chunk_size=_IN_A_FOLDER * 10, return_arrow=True))


LISTERS = {"pyarrow.fs": list_by_pyarrow, "obstore": list_by_obstore, "ours": list_by_ours}


def list_names(way: str, names: int) -> dict[str, float]:
    before, started, memory = cpu_s(), time.perf_counter(), peak_mb()
    found = LISTERS[way]()
    assert found == names, f"{way} lists {found} names of {names}"
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": cpu_s() - before,
        "more_mb": peak_mb() - memory,
    }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class LongListing(FarStore):
    """A bucket of made-up names, in folders (`0000/0000.jpg`) or flat: it lists them, by S3's
    ListObjectsV2, and has nothing else.
    """

    def __init__(self, names: int, is_flat: bool, delay_s: float) -> None:
        super().__init__(Path("/"), "/photos/", 0, delay_s)
        self.names, self.is_flat = names, is_flat

    async def _relay(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        target = head.split(b" ", 2)[1].decode()
        body = self._page(
            {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    def _page(self, asked: dict[str, str]) -> bytes:
        """One page of up to 1,000 keys, or of folders."""
        prefix, start = asked.get("prefix", ""), int(asked.get("continuation-token", 0))
        folders = self.names // _IN_A_FOLDER
        if "delimiter" in asked and not self.is_flat and not prefix:
            end = min(start + 1000, folders)
            entries = "".join(
                f"<CommonPrefixes><Prefix>{n:04}/</Prefix></CommonPrefixes>"
                for n in range(start, end)
            )
            more = end < folders
        else:
            first = int(prefix.rstrip("/")) * _IN_A_FOLDER if prefix else 0
            last = first + _IN_A_FOLDER if prefix else self.names
            start = start or first
            end = min(start + 1000, last)
            entries = "".join(self._entry(n) for n in range(start, end))
            more = end < last
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>photos</Name>'
            f"<Prefix>{prefix}</Prefix><KeyCount>{end - start}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def _entry(self, n: int) -> str:
        folder = "" if self.is_flat else f"{n // _IN_A_FOLDER:04}/"
        return (
            f"<Contents><Key>{folder}{n:08}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z"
            "</LastModified><ETag>&quot;e&quot;</ETag><Size>110000</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )


def in_a_process(port: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process that finds the store at this port."""
    os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def medians(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        way: {name: round(statistics.median(one[name] for one in of_way), 3) for name in of_way[0]}
        for way, of_way in found.items()
    }


def measure_reads(
    photos: Path, images: int, rounds: int, delay_s: float, part: tuple[int, int] | None
) -> dict[str, dict[str, float]]:
    files = sorted(path.name for path in photos.iterdir())
    keys = [f"all/{files[place % len(files)]}" for place in range(images)]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in READERS}
    far = FarStore(photos, "/photos/all/", 0, delay_s)
    with far_away(far) as port:
        for _ in range(rounds):
            for way, of_way in found.items():
                far.requests.clear()
                one = in_a_process(port, read, way, keys, part)
                # One photo more than counted is read, to connect.
                requests = far.requests["GET"] + far.requests["HEAD"]
                of_way.append({**one, "requests": requests / (len(keys) + 1)})
    return medians(found)


def measure_lists(
    names: int, is_flat: bool, rounds: int, delay_s: float
) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in LISTERS}
    with far_away(LongListing(names, is_flat, delay_s)) as port:
        for _ in range(rounds):
            for way, of_way in found.items():
                of_way.append(in_a_process(port, list_names, way, names))
    return medians(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=50)
    arguments = parser.parse_args()
    delay_s, load = arguments.latency_ms / 1000, load_average()
    if arguments.names % _IN_A_FOLDER:
        sys.exit(f"--names is a multiple of {_IN_A_FOLDER}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        photos = make_photos(arguments.source, "small", min(arguments.images, 200), Path(work))
        for what, part in (("read", None), ("range", _MIDDLE)):
            results[what] = measure_reads(photos, arguments.images, arguments.rounds, delay_s, part)
    for what, is_flat in (("list, folders", False), ("list, flat", True)):
        results[what] = measure_lists(arguments.names, is_flat, arguments.rounds, delay_s)
    for what, ways in results.items():
        for way, figures in ways.items():
            told = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())
            print(f"{what:<14} {way:<10} {told}")
    print(
        json.dumps(
            {
                "benchmark": "stores",
                **vars(arguments),
                "cpu": describe_cpu(),
                "load_before": load,
                **results,
            },
            default=str,
        )
    )


if __name__ == "__main__":
    main()
