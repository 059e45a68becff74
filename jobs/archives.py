"""Which paths are archives of images, and which lie in one: all by name, and said here alone.

A path in an archive begins with the archive's own: photos/shard-00.tar/0001.jpg. For whom it is
Arrow that compares, the same as text and as a pattern. Imports nothing: the command asks at once.
"""

SUFFIX = ".tar"  # in any case of letters

# What the path of an image in an archive has in it, and what of it is the archive's: the outermost.
INSIDE = f"{SUFFIX}/"
ARCHIVE_OF = rf"(?is)^(?P<archive>.*?\{SUFFIX})/"


def is_archive(path: str) -> bool:
    return path[-len(SUFFIX) :].lower() == SUFFIX
