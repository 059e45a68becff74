"""A location -> the bytes of the file there, or a Failure with a reason. Runs in loader workers."""

import os
import stat

from .samples import Failure


def read_image(index: int, path: bytes) -> bytes | Failure:
    """Read a whole file. Never raises for one that cannot be read."""
    try:
        # Looked at before it is opened: opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return Failure(index, "not_a_file", "not a regular file")
        with open(path, "rb") as file:
            return file.read() or Failure(index, "empty_file", "the file has no bytes")
    except (FileNotFoundError, NotADirectoryError) as error:
        return Failure(index, "not_found", error.strerror or "no such file")
    except PermissionError as error:
        return Failure(index, "permission_denied", error.strerror or "permission denied")
    except OSError as error:
        return Failure(index, "read_error", error.strerror or str(error))
    except MemoryError:
        return Failure(index, "out_of_memory", "reading it needed more memory than there was")
