"""Who labels, ready to: this machine or a Ray cluster, whichever the settings name.

Only what that one needs is imported.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.load.processes import start_early
from pipeline.settings import Settings
from vit.errors import ModelError

from .labeller import Labeller

Explain = Callable[[ModelError], ModelError]


@contextmanager
def ready_labeller(settings: Settings, explain: Explain) -> Iterator[Labeller]:
    """The labeller that the settings choose, with the model.

    Raises ModelError, as `explain` has it, where the model cannot be loaded, and UsageError for a
    device or a cluster that is not there.
    """
    if settings.engine == "ray":
        from .ray_driver import Cluster, connected

        with connected(settings) as ray:
            yield _loaded(lambda: Cluster(ray, settings), explain)
        return
    start_early(settings)
    from .placement import choose_device

    choose_device(settings.device)  # refused before the model is loaded
    yield this_machine(settings, explain)


def this_machine(settings: Settings, explain: Explain) -> Labeller:
    """This machine, with the model. Raises ModelError, as `explain` has it."""
    from .local import Machine

    return _loaded(lambda: Machine(settings), explain)


def _loaded(load: Callable[[], Labeller], explain: Explain) -> Labeller:
    try:
        return load()
    except ModelError as error:
        raise explain(error) from error
