"""What a run says: records of the stdlib loggers `label_images.EVENT`, and how a command shows them.

A record has the event's name and its facts beside the text, as `event` and `facts`. Of themselves
these loggers print nothing: whoever uses the library configures logging, or doesn't. A command
shows messages on stderr and results on stdout while it runs (`shown`): the text alone, or with
--log-json one JSON object a line (docs/programs.md lists the events). How far labelling is shows
as a bar on a terminal, and elsewhere as a message now and then.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from .path_names import printable

LINE_EVERY_S = 30.0

_ALL = logging.getLogger("label_images")
_RESULTS = logging.getLogger("label_images.results")
# Without any handler Python would print warnings on stderr by itself.
_ALL.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Console:
    """Says things. `shows_bar`: progress is a bar, and no message."""

    shows_bar: bool = False

    def info(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        _say(_ALL.getChild(event), logging.INFO, event, message, facts)

    def warn(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        _say(_ALL.getChild(event), logging.WARNING, event, message, facts)

    def result(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        """Say what a command was asked for; it may have several lines."""
        _say(_RESULTS, logging.INFO, event, message, facts)

    def error(self, message: str, exit_code: int, is_our_fault: bool = False) -> None:
        """Say why a command ends, with the exception that is being handled, if any."""
        level = logging.CRITICAL if is_our_fault else logging.ERROR
        _say(_ALL.getChild("error"), level, "error", message, {"exit_code": exit_code})


def _say(
    logger: logging.Logger, level: int, event: str, message: str, facts: dict[str, Any] | None
) -> None:
    extra = {"event": event, "facts": facts or {}}
    handled = level >= logging.ERROR and sys.exc_info()[0] is not None
    logger.log(level, message, exc_info=handled, extra=extra, stacklevel=3)


@contextmanager
def shown(quiet: bool = False, log_json: bool = False, debug: bool = False) -> Iterator[Console]:
    """Show what is said in this process, until the block ends: for commands.

    `quiet` leaves out what is neither a warning, an error nor a result; `debug` shows errors with
    their traceback. Nobody else's handlers get these records meanwhile: each is shown once.
    """
    formatter = _Json(debug) if log_json else _Text(debug)
    messages = _Echo(formatter, logging.WARNING if quiet else logging.INFO, err=True)
    results = _Echo(formatter, logging.INFO, err=False)
    with _handled(_ALL, messages), _handled(_RESULTS, results):
        yield Console(shows_bar=not quiet and not log_json and sys.stderr.isatty())


@contextmanager
def _handled(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Let `handler` alone have a logger's records for a while."""
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Echo(logging.Handler):
    """Writes to whatever is stdout or stderr at the time.

    A stream that cannot be written to ends the command: BrokenPipeError is not swallowed.
    """

    def __init__(self, formatter: logging.Formatter, level: int, err: bool) -> None:
        super().__init__(level)
        self.err = err
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=self.err)


class _Text(logging.Formatter):
    """For people: the message alone, on one line, and results on theirs."""

    def __init__(self, debug: bool) -> None:
        super().__init__()
        self.debug = debug

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == _RESULTS.name:
            return "\n".join(map(printable, message.split("\n")))
        if record.levelno < logging.ERROR:
            return printable(message)
        return self.traceback(record) + printable(f"label-images: {message}")

    def traceback(self, record: logging.LogRecord) -> str:
        """The lines of an error's traceback, where one is to be shown."""
        is_shown = self.debug or record.levelno >= logging.CRITICAL
        if not record.exc_info or not is_shown:
            return ""
        return f"{self.formatException(record.exc_info)}\n"


class _Json(_Text):
    """For programs: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if trace := self.traceback(record):
            said["traceback"] = trace
        return json.dumps(said)


class Progress:
    """Counts images as they are labelled.

    A context manager, so that the bar is closed however it ends.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done = console, total, done
        self.failed = 0
        self.started_with = done
        self.started = self.last_line = time.monotonic()
        from tqdm import tqdm  # a night without work shows none

        self.bar = tqdm(
            total=total, initial=done, unit=" images", disable=not console.shows_bar, smoothing=0.1
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def images_per_s(self) -> float:
        return (self.done - self.started_with) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, images: int, failed: int) -> None:
        self.done += images
        self.failed += failed
        self.bar.update(images)
        if self.failed:
            self.bar.set_postfix(failed=self.failed, refresh=False)
        now = time.monotonic()
        if (
            not self.console.shows_bar
            and now - self.last_line >= LINE_EVERY_S
            and self.done < self.total
        ):
            self.last_line = now
            left_s = (self.total - self.done) / max(self.images_per_s, 1e-9)
            facts = {"done": self.done, "total": self.total, "failed": self.failed}
            self.console.info(
                "progress",
                f"{self.done:,} of {self.total:,} images, {self.images_per_s:.1f} images/s, "
                f"{duration(left_s)} left, {self.failed:,} failed",
                facts | {"images_per_s": round(self.images_per_s, 2), "left_s": round(left_s)},
            )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"
