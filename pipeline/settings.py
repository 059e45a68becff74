"""Settings: what the user asked for, one frozen value made from the command's options."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.find.selection import Selection, has_raw

from .errors import UsageError

if TYPE_CHECKING:  # pyarrow's import would keep --help waiting
    from jobs.storage.object_store import AnyPath
    from vit.head import Activation

# The largest phone sensors have as many; decoded RGB takes 4 bytes a pixel in Pillow.
DEFAULT_MAX_PIXELS = 200_000_000
DEFAULT_IMAGE_TIMEOUT_S = 60.0
DEFAULT_TOP_K = 5
DEFAULT_REPORT_PHOTOS = 4_000  # that the pages of a report show: about 60 MB of thumbnails
PRECISIONS = ("fp32", "bf16", "fp16")
RUNTIMES = ("torch", "openvino")

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90, 1.5s, 30m, 5h30m or 2d. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a duration such as 90 (seconds), 30m, 5h30m or 2d")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class ErrorBudget:
    """How many failed images are acceptable: a count, or a percentage of the images found."""

    limit: float
    is_percent: bool

    @classmethod
    def parse(cls, text: str) -> "ErrorBudget":
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
        if not match or (not match[2] and "." in match[1]):
            raise UsageError(
                f"{text!r} is neither a count of failed images such as 20 nor a percentage such as 5%"
            )
        return cls(float(match[1]), bool(match[2]))

    def is_exceeded(self, failed: int, found: int) -> bool:
        return failed > (found * self.limit / 100 if self.is_percent else self.limit)

    def __str__(self) -> str:
        return f"{self.limit:g}{'%' if self.is_percent else ''}"


if TYPE_CHECKING:
    # A program may give places and budgets as text (pipeline.label_images makes values of them); the
    # fields hold values. Nothing but a descriptor says both to whoever checks types.
    class Place:
        def __get__(self, settings: object, owner: type) -> AnyPath | None: ...
        def __set__(self, settings: object, given: AnyPath | str | None) -> None: ...

    class Places:
        def __get__(self, settings: object, owner: type) -> tuple[AnyPath, ...]: ...
        def __set__(self, settings: object, given: Iterable[AnyPath | str]) -> None: ...

    class File:
        def __get__(self, settings: object, owner: type) -> Path | None: ...
        def __set__(self, settings: object, given: Path | str | None) -> None: ...

    class Budget:
        def __get__(self, settings: object, owner: type) -> ErrorBudget: ...
        def __set__(self, settings: object, given: ErrorBudget | str) -> None: ...


_NOWHERE: Any = None
_NO_PLACES: Any = ()
_FIVE_PERCENT: Any = ErrorBudget(5, is_percent=True)


@dataclass(frozen=True)
class Settings:
    """None stands for `auto`: it is chosen when the run starts, from the machine, and for model and
    top_k from the table.

    A Place is a path or an address in a store (`s3://...`), a File a path on this machine, a Budget
    a count or a percentage (`5%`): for `label_images` text will do for each of them.
    """

    paths: "Places" = _NO_PLACES
    files_from: str | None = None
    out: "Place" = _NOWHERE
    is_dataset: bool = False  # `out` is to be a folder of files
    embeddings: "Place" = _NOWHERE
    report: "Place" = _NOWHERE
    model: str | None = None
    model_because: str | None = None  # why `model` was chosen, where nobody named it; no option
    labels: Path | None = None
    arch: str | None = None
    preprocess: str | None = None
    templates: tuple[str, ...] = ()  # of prompts, where `labels` are words for a text tower
    activation: "Activation | None" = (
        None  # of a head made of words; None is the one its model trained with
    )
    top_k: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None
    precision: str | None = None
    runtime: str | None = None  # torch or openvino
    compile: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    default_excludes: bool = True
    raw: bool | None = None  # take raw photos: where the extra is installed, or the table has some
    pairs: str = "all"  # or first
    image_column: str | None = None
    key_column: str | None = None
    max_errors: "Budget" = _FIVE_PERCENT
    max_drift: float | None = None  # a distance, 0 to 1
    max_pixels: int = DEFAULT_MAX_PIXELS
    image_timeout: float = DEFAULT_IMAGE_TIMEOUT_S
    settle: float = 0.0  # seconds
    max_runtime: float | None = None  # seconds
    audit: int | None = None
    engine: str = "local"  # or ray
    ray_address: str | None = None
    shard_size: int | None = None
    restart: bool = False
    relabel: bool = False
    forget: "Places" = _NO_PLACES
    overwrite: bool = False
    metrics: "File" = _NOWHERE
    quiet: bool = False
    log_json: bool = False
    debug: bool = False

    @property
    def table(self) -> "AnyPath":
        """`out`, for those who write a table; only `label-images PATH` without --out has none."""
        assert self.out is not None
        return self.out

    @property
    def beside(self) -> "dict[str, AnyPath]":
        """The products to make beside the table of labels, by name, and where each is to be."""
        return {} if self.embeddings is None else {"embeddings": self.embeddings}

    @property
    def places(self) -> "dict[str, AnyPath]":
        """Where each product is to be, by name."""
        return {"labels": self.table, **self.beside}

    @property
    def selection(self) -> Selection:
        return Selection(
            self.include,
            self.exclude,
            self.image_column,
            self.key_column,
            self.default_excludes,
            has_raw() if self.raw is None else self.raw,
            self.pairs,
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON can hold it, for the manifest."""
        record = asdict(self)
        record |= {
            name: [str(path) for path in getattr(self, name)] for name in ("paths", "forget")
        }
        record["max_errors"] = str(self.max_errors)
        plain = (str, int, float, bool, list, tuple, type(None))
        return {
            name: value if isinstance(value, plain) else str(value)
            for name, value in record.items()
        }
