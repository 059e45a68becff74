"""File names as text: names are bytes to the operating system, and not always UTF-8."""

import os
import re

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def escape_name(name: bytes) -> tuple[str, bytes | None]:
    """Return a path as text, and its bytes where the text is not just those.

    Bytes that are not UTF-8 become \\xHH. So that no two names become one, a name that already
    holds such a sequence has its backslashes escaped too.
    """
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        if not _ESCAPED.search(name):
            return text, None
    return name.replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace"), name


def escape_text(name: str) -> tuple[str, bytes | None]:
    """escape_name, of a name as Python gives it: undecodable bytes as surrogates."""
    if name.isascii() and "\\" not in name:  # nearly all
        return name, None
    return escape_name(os.fsencode(name))


def unescape_name(text: str) -> bytes:
    """Undo escape_name."""
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.encode())


def printable(text: str) -> str:
    """Text for a terminal: line ends and control characters, which could rule it, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def display(path: str | os.PathLike[str]) -> str:
    """A path from the operating system as text that can be stored."""
    return escape_text(os.fspath(path))[0]
