"""Holding a job: one run at a time works on it, in a folder that was swept and that stays there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.storage.atomic import leftovers, make_folder, remove
from jobs.storage.lease import hold_lease
from jobs.storage.lock import hold_lock
from jobs.storage.object_store import AnyPath, StorePath

from .errors import JobError

# Of a job folder: what runs make in it, and what a link must not lead out of.
_MADE = ("lock", "parts", "receipts", "files")


@contextmanager
def hold(folder: AnyPath, out: AnyPath) -> Iterator[Callable[[], None] | None]:
    """Hold the job folder of the table at `out`, made where it is missing.

    Yield what raises JobError once the job may be another's; None where nothing keeps others off,
    in a store. Raises JobLocked when another run has it, or JobError where it cannot be written, or
    goes while it is held.
    """
    if isinstance(folder, StorePath):
        with hold_lease(folder / "lease.json") as lease:
            if lease is not None:  # else what is half-written may be another run's
                _sweep_store(folder)
            yield lease.check if lease else None
        return
    assert isinstance(out, Path)
    _make(folder, out)
    with hold_lock(folder):
        _sweep(folder, out)
        held = os.stat(folder)

        def check() -> None:
            # A lock in a folder that was removed keeps nobody off the one that was made since.
            if not _is_there(folder, held):
                raise JobError(_gone(folder, out))

        try:
            yield check
        except (FileNotFoundError, NotADirectoryError):
            check()
            raise  # something else is missing, and it is for us to know what


def _make(folder: Path, out: Path) -> None:
    try:
        for path in (folder, *(folder / name for name in _MADE)):
            if path.is_symlink():  # nothing is ever written through one, out of the job folder
                raise JobError(f"{path} is a link, which label-images never makes: remove it")
        make_folder(folder)
    except OSError as error:
        raise JobError(
            f"cannot write beside {out}: {error.strerror or error}; choose an --out in a "
            "folder that exists and can be written to"
        ) from error


def _sweep(folder: Path, out: Path) -> None:
    """Remove the temporary files that killed processes left.

    Under the lock nobody else is to write them; a task of a dead Ray driver that still does then
    finds its own gone, and ends.
    """
    for path in (folder, folder / "parts", folder / "receipts"):
        for temporary in path.glob("*.tmp"):
            remove(temporary)
    for temporary in leftovers(out):
        remove(temporary)


def _sweep_store(folder: StorePath) -> None:
    """Remove what killed processes have put and never copied to its name (StorePath.upload)."""
    for path in (folder, folder / "parts"):
        for uploaded in path.glob("*.new"):
            uploaded.unlink(missing_ok=True)


def _is_there(folder: Path, held: os.stat_result) -> bool:
    """Whether a job folder is the one that is held, and what a plan needs is in it."""
    try:
        if not os.path.samestat(os.stat(folder), held):
            return False
    except OSError:
        return False
    has_plan = (folder / "plan.arrow").exists()
    return not has_plan or all((folder / name).is_dir() for name in ("parts", "receipts"))


def _gone(folder: Path, out: Path) -> str:
    what = folder if os.path.isdir(out.parent) else out.parent
    return (
        f"{what} is not there any more: it was removed or moved, or its disk was taken away, while "
        "this run was at work. Nothing is lost that it still holds: if it was a disk, bring it "
        "back, then run the same command again, which goes on with what is left and labels the rest"
    )
