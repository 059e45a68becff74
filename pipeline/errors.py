"""What a user can cause, with the exit code each leaves."""

import errno

from jobs.errors import JobError, JobLocked
from vit.errors import ModelError

# Of runs that wrote the table, and that somebody should look at all the same.
EXIT_TOO_MANY_ERRORS, EXIT_UNSEEN = 3, 7


class LabelImagesError(Exception):
    """Something a user can understand and mend; the message says what and how."""

    exit_code = 1


class UsageError(LabelImagesError):
    """The command cannot be carried out as given."""

    exit_code = 2


class TableError(LabelImagesError):
    """`--out` holds something this tool did not write, or cannot continue."""

    exit_code = 5


class AuditError(LabelImagesError):
    """Labels come out otherwise when they are made again; exit code 1, as for a fault of this tool
    or its machine.
    """


class TimeIsUp(LabelImagesError):
    """--max-runtime is over; what was finished is kept."""

    exit_code = 6


def time_is_up(done: int, n_images: int, finished_some: bool = True) -> TimeIsUp:
    """The error that ends a run in time. `done` counts the images of finished shards, which are
    kept.
    """
    advice = (
        "run the same command to go on"
        if finished_some
        else "no shard was finished: allow more time, or begin anew with a smaller --shard-size"
    )
    return TimeIsUp(
        f"--max-runtime is over, {done:,} of {n_images:,} images were labelled; finished shards "
        f"are kept, {advice}"
    )


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Like KeyboardInterrupt, not an Exception: nothing may swallow it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


# What the machine refuses, and a user can mend: room, rights, disks, limits.
_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV,
    errno.ENXIO, errno.ENOTCONN, errno.EFBIG,
}  # fmt: skip


def is_of_the_machine(error: OSError) -> bool:
    """Whether an error is the machine's or a store's, and not a fault of this program.

    Arrow's errors about a store have no number, except that for a file which is not there it raises
    FileNotFoundError.
    """
    plain = error.errno is None and type(error) is OSError
    return error.errno in _MACHINE or plain or isinstance(error, ConnectionError | TimeoutError)


def exit_code_of(error: BaseException) -> int:
    """The exit code of the command that an error ends (docs/nightly.md)."""
    if isinstance(error, LabelImagesError | Interrupted):
        return error.exit_code
    if isinstance(error, JobLocked):
        return 4
    if isinstance(error, JobError) or (isinstance(error, OSError) and is_of_the_machine(error)):
        return 5
    return 2 if isinstance(error, ModelError) else 1
