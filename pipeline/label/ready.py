"""A labeller that is ready to work: this machine or a Ray cluster, as the settings say.

Only what that one needs is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.settings import Settings
from vit.errors import ModelError

from .deferred import DeferredMachine, Explain
from .labeller import Labeller


@contextmanager
def ready_labeller(settings: Settings, explain: Explain) -> Iterator[Labeller]:
    """The labeller that the settings choose.

    Raises ModelError, as `explain` has it, where the model cannot be loaded, and UsageError for a
    device or a cluster that is not there; on this machine perhaps only when there is work.
    """
    if settings.engine == "ray":
        from .ray_driver import Cluster, connected

        with connected(settings) as ray:
            try:
                cluster = Cluster(ray, settings)
            except ModelError as error:
                raise explain(error) from error
            yield cluster
        return
    yield DeferredMachine(settings, explain)
