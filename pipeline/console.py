"""What a command says: results on stdout, all else on stderr: a bar on a terminal, a line now and
then elsewhere.

With --log-json each line is one JSON object: `time`, `event`, `message`, and the event's own facts.
"""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

import click
from tqdm import tqdm

from .path_names import printable

LINE_EVERY_S = 30.0


class Console:
    """Where messages go. `quiet` keeps warnings and errors only."""

    def __init__(self, quiet: bool = False, log_json: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.log_json = log_json
        self.debug = debug  # errors with their traceback

    def info(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        if not self.quiet:
            self._write(event, message, facts)

    def warn(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        self._write(event, message, facts)

    def error(self, message: str, exit_code: int, facts: dict[str, Any] | None = None) -> None:
        """Say why the command ends; a `traceback` among the facts comes before it."""
        if self.log_json:
            self._write("error", message, {"exit_code": exit_code, **(facts or {})})
            return
        if facts and "traceback" in facts:
            click.echo(facts["traceback"], err=True, nl=False)
        self._write("error", f"label-images: {message}", None)

    def result(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        """Say what was asked for, on stdout; nobody is to be spared it by `quiet`."""
        self._write(event, message, facts, is_result=True)

    def _write(
        self, event: str, message: str, facts: dict[str, Any] | None, is_result: bool = False
    ) -> None:
        if self.log_json:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            message = json.dumps({"time": now, "event": event, "message": message, **(facts or {})})
        lines = message.split("\n") if is_result else [message]  # a result may have several
        click.echo("\n".join(map(printable, lines)), err=not is_result)

    @property
    def shows_bar(self) -> bool:
        return not self.quiet and not self.log_json and sys.stderr.isatty()


class Progress:
    """Counts images as they are labelled.

    A context manager, so that the bar is closed however it ends.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done = console, total, done
        self.failed = 0
        self.started_with = done
        self.started = self.last_line = time.monotonic()
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
