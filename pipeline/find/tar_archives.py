"""Tar archives of images (WebDataset's shards are such), listed and never unpacked.

An image in one is known by its `offset`, a member's first byte. Names in an archive are text and
nothing else: nothing is ever written under them.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Damaged(Exception):
    """An archive or table that cannot be read to its end."""


class Member(NamedTuple):
    """A file in an archive, as its header says."""

    name: bytes
    offset: int  # its first byte
    size: int
    changed_s: float


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield the files in a tar archive, in its order. Raises Damaged.

    Reads the members' headers alone, and seeks over what lies between.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    last = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = (
                    member.offset_data + (member.size + 511) // 512 * 512
                    if member.isreg()
                    else member.offset_data
                )
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > end:
                    raise Damaged("the archive ends before its last member does")
                name = os.fsencode(member.name)
                yield Member(name, member.offset_data, member.size, member.mtime)
        if last + 512 > end:  # there should be a block of zeros
            raise Damaged("the archive has no end mark, as if it had been cut")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Damaged(f"no tar archive, or a damaged or compressed one: {error}") from error
