"""The bytes of one image, or a Failure with a reason. Runs in loader workers."""

import os
import stat

import pyarrow as pa

from jobs.errors import JobError
from jobs.storage.object_store import StorePath
from jobs.storage.retry import is_denied
from pipeline.failures import Failure
from pipeline.find.image_tables import read_row
from pipeline.find.source import Source


def read_image(index: int, source: Source) -> bytes | Failure:
    """Read the bytes of an image. Never raises for one that cannot be read."""
    try:
        if source.container and source.offset is None:
            return Failure(
                index, "corrupt", "this archive cannot be read to its end; what follows is missing"
            )
        # Looked at before it is opened: opening a pipe would wait for its writer.
        if isinstance(source.place, bytes) and not stat.S_ISREG(os.stat(source.place).st_mode):
            return Failure(index, "not_a_file", "not a regular file")
        return _read(source) or Failure(index, "empty_file", "the file has no bytes")
    except (FileNotFoundError, NotADirectoryError) as error:
        return Failure(index, "not_found", error.strerror or "no such file")
    except JobError as error:  # the store cannot be connected to
        return Failure(index, "read_error", str(error)[:300])
    except OSError as error:
        code = "permission_denied" if is_denied(error) else "read_error"
        return Failure(index, code, error.strerror or str(error)[:300])
    except (pa.ArrowException, StopIteration) as error:
        return Failure(index, "corrupt", f"the table it is in is damaged: {error}"[:300])
    except MemoryError:
        return Failure(index, "out_of_memory", "reading it needed more memory than there was")


def _read(source: Source) -> bytes | None:
    place, offset = source.place, source.offset or 0
    if source.column is not None:
        return read_row(place, source.column, offset)
    if isinstance(place, StorePath):
        return place.read_range(offset, source.size)
    with open(place, "rb") as file:
        file.seek(offset)
        return file.read(-1 if source.size is None else source.size)


def stamp(source: Source) -> tuple[int | None, int] | None:
    """Size and time of change, in microseconds, of the file an image is or is in, now; None where
    it is gone.

    The size of a file with many images says nothing, and is None.
    """
    try:
        if isinstance(source.place, StorePath):
            info = source.place.info()
            size, mtime = info.size, info.mtime_ns
        else:
            status = os.stat(source.place)
            size, mtime = status.st_size, status.st_mtime_ns
    except OSError:
        return None
    return None if mtime is None else (None if source.container else size, mtime // 1000)
