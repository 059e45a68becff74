"""What a reader's shell is, to whom a page's lines are typed: quickly, and in a folder of their own.

`label-images` and `duckdb` run in this process, since each of their own would import torch again;
all else is bash's. /data is a folder that all pages read from.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cli.commands import main
from tests.helpers import Command, photo
from tests.text_models import model_folder


def make_table(path: Path) -> None:
    """A Parquet table of images."""
    photos = [photo(seed) for seed in range(3)]
    rows = [{"id": f"photo-{n}", "image": _jpeg(each, path)} for n, each in enumerate(photos)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _jpeg(image: Image.Image, beside: Path) -> bytes:
    file = beside.with_suffix(".jpg")
    image.save(file)
    found = file.read_bytes()
    file.unlink()
    return found


def make_examples(folder: Path) -> None:
    """Folders of photos for two classes, as few as will do, that colours tell apart."""
    for n, name in enumerate(("blue", "red")):
        (folder / name).mkdir(parents=True)
        for seed in range(5):
            bands = list(photo(seed + 10 * n).split())
            bands[2 - 2 * n] = bands[2 - 2 * n].point(lambda value: min(255, value + 120))
            Image.merge("RGB", bands).save(folder / name / f"{seed}.jpg")


def shrink(source: Path, out: Path) -> None:
    with Image.open(source) as image:
        image.reduce(2).save(out)


# What set-ups may call beside bash.
_MAKERS: dict[str, Callable[..., object]] = {
    "make-clip": lambda folder: model_folder(folder, "clip"),
    "make-examples": make_examples,
    "make-table": make_table,
    "shrink": shrink,
}


class Shell:
    """Runs lines in `folder`; `data` is what they call /data."""

    def __init__(self, folder: Path, data: Path, command: Command) -> None:
        self.folder, self._data, self._command = folder, data, command

    def run(self, line: str) -> tuple[int, str]:
        """Run a line with its pipes and its `> file`. Returns the exit code of label-images (the last
        one's, where it is there more than once), else of the last program, and what was printed.
        """
        lexer = shlex.shlex(self._here(line), posix=True, punctuation_chars="|>")
        lexer.whitespace_split = True
        steps: list[list[str]] = [[]]
        for word in lexer:
            if word == "|":
                steps.append([])
            else:
                steps[-1].append(word)
        to = None
        if ">" in steps[-1]:
            *steps[-1], _, to = steps[-1]
        code, piped, said = 0, b"", ""
        for words in steps:
            if not words:  # a comment
                continue
            ended, printed, also = self._step(words, piped)
            code = ended if words[0] == "label-images" or not code else code
            piped, said = printed.encode(), said + also
        if to:
            (self.folder / to).write_bytes(piped)
            piped = b""
        return code, self._as_told(piped.decode() + said)

    def _step(self, words: list[str], piped: bytes) -> tuple[int, str, str]:
        program, *rest = words
        if program == "label-images":
            # No processes of its own for fifteen photos.
            is_run = "--out" in rest and rest[0] not in main.commands
            alone = ("--workers", "0") if is_run else ()
            ran = self._command(*rest, *alone, stdin=piped)
            return ran.returncode, ran.stdout, ran.stderr
        if program == "duckdb":
            assert rest[0] == "-c"
            with duckdb.connect() as db:
                return 0, str(db.sql(rest[1])), ""
        if program in _MAKERS:
            _MAKERS[program](*(self.folder / word for word in rest))
            return 0, "", ""
        done = subprocess.run(words, input=piped, cwd=self.folder, capture_output=True, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def prepare(self, lines: str) -> None:
        """Run a page's hidden set-up, line by line."""
        for line in lines.splitlines():
            code, said = self.run(line)
            assert code == 0, f"{line}: {said}"

    def _here(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/data/", f"{self._data}/", text)

    def _as_told(self, text: str) -> str:
        """What was printed, as on the machine that the pages tell of."""
        return text.replace(str(self._data), "/data").replace(str(self.folder), "/home/me")


def copy_of(library: Path, folder: Path) -> None:
    """The table and the embeddings that pages find in their folder."""
    for each in library.iterdir():
        if each.is_dir():
            shutil.copytree(each, folder / each.name)
        else:
            shutil.copy2(each, folder / each.name)
