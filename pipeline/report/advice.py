"""What the owner of the photos can do about a failure, and what a run's exit code says."""

ADVICE = {
    "not_found": "Is a disk not mounted, or a link's target gone? It is tried again each run.",
    "permission_denied": "Let the user who runs label-images read it; it is tried again each run.",
    "read_error": "Look at the disk or the network; it is tried again each run.",
    "not_a_file": "Nothing, or leave it out with --exclude.",
    "empty_file": "Copy it once more from where it came, or delete it.",
    "not_an_image": "Its name says image, its content something else: rename it, or leave it out "
    "with --exclude.",
    "truncated": "Copy it once more from where it came: its end is missing.",
    "corrupt": "Copy it once more from where it came, or restore it from a backup.",
    "unsupported": "The detail says what helps: a library to install, or another format to convert "
    "it to.",
    "too_many_pixels": "Raise --max-pixels if there is the memory for it.",
    "out_of_memory": "Give it more memory, or fewer --workers; it is tried again each run.",
    "timeout": "Raise --image-timeout, or look at the disk; it is tried again each run.",
    "decoder_crash": "The file is most likely damaged: restore it from a backup, or convert it.",
    "not_finite": "Try --precision fp32; if it goes on failing, the model's weights may be damaged.",
}

ENDED = {
    0: "done",
    1: "failed",
    2: "could not be carried out",
    3: "done, with more failures than --max-errors",
    4: "another run was at work",
    5: "refused",
    6: "stopped in time; it goes on",
    7: "done, but something could not be looked at",
    130: "interrupted",
    143: "interrupted",
}
