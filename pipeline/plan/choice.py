"""ModelChoice: which model labels, and how; what a table remembers of the command that made it.

A command that names no model (--model auto) goes on with the table's, or with that of an unfinished
job: a forgotten --model never changes a label, nor does a network that comes or goes. Without either
it is the default model, or the one in the package (default_model.py).
What replaces the labels of a whole table needs a word from the user: an option that asks for it, or
--relabel.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import Job
from pipeline.console import Console
from pipeline.settings import DEFAULT_TOP_K, Settings
from pipeline.table.record import TableRecord
from vit.errors import ModelError

from .default_model import DEFAULT_MODEL, EMBEDDED, Decision, decide, is_lesser

if TYPE_CHECKING:  # a night without work imports no torch
    from vit.head import Activation


@dataclass(frozen=True)
class ModelChoice:
    """`model` and `labels` are found from any working folder
    (vit.checkpoints.locate.Source.address). `because` is why it was that model, where no command
    named it.
    """

    model: str
    labels: str | None = None
    arch: str | None = None
    preprocess: str | None = None
    top_k: int = DEFAULT_TOP_K
    templates: tuple[str, ...] = ()
    activation: "Activation | None" = None
    because: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, settings: Settings, address: str) -> "ModelChoice":
        """What to remember of a run's settings, whose model was found at `address`."""
        labels = os.path.abspath(settings.labels) if settings.labels else None
        return cls(
            address,
            labels,
            settings.arch,
            settings.preprocess,
            settings.top_k or DEFAULT_TOP_K,
            settings.templates,
            settings.activation,
            settings.model_because,
        )

    @classmethod
    def from_record(cls, record: Any) -> "ModelChoice | None":
        """Rebuild what `to_record` gave; None where a table, of an earlier version, remembers
        nothing.
        """
        try:
            return cls(**{**record, "templates": tuple(record.get("templates", ()))})
        except (TypeError, AttributeError):
            return None

    def to_record(self) -> dict[str, Any]:
        """As JSON. What goes with words, and the reason, are left out where there are none: an
        earlier version remembers the rest.
        """
        record = asdict(self)
        newer = {
            "templates": list(self.templates),
            "activation": self.activation,
            "because": self.because,
        }
        return {
            name: value for name, value in (record | newer).items() if value or name not in newer
        }

    def is_named_by(self, model: str) -> bool:
        """Whether --model asks for this one, by whichever of its names."""
        if model.startswith("hf-hub:"):
            return model.partition("@")[0] == self.model.partition("@")[0]
        return model == self.model or os.path.realpath(model) == os.path.realpath(self.model)


@dataclass(frozen=True)
class Chosen:
    """Settings with a model.

    `may_replace`: an option asks for labels other than the table's. `remembered`: what the table
    added to the command. `table_id` is the plan_id of the table that was asked, None without one.
    `decision` is why it is this model, where neither the command nor a table says it.
    """

    settings: Settings
    may_replace: bool
    remembered: tuple[str, ...] = ()
    table_id: str | None = None
    decision: Decision | None = None

    def announce(self, console: Console) -> None:
        """Say which model it is and why, where the command does not."""
        model, because = self.settings.model or EMBEDDED, self.settings.model_because
        facts = {"model": model, "reason": because}
        if self.decision:
            if self.decision.warning:
                stays = f". {self.settings.table} keeps it from now on" if self.settings.out else ""
                console.warn("choice", f"{self.decision.warning}{stays}", facts)
            else:
                console.info("choice", f"--model auto: {model}, {because}", facts)
        elif "model" in self.remembered:
            why = f" ({because})" if because else ""
            better = (
                f"; the default is a better one: --model {DEFAULT_MODEL} labels all again with it"
                if is_lesser(model)
                else ""
            )
            whose = self.settings.table if self.table_id else "the unfinished job"
            text = f"--model auto: {model}, as {whose} has it{why}{better}"
            console.info("choice", text, facts)

    def explained(self, error: ModelError) -> ModelError:
        """An error of the model, with what the command got from the table and does not say itself."""
        if self.decision and not self.decision.warning:
            return ModelError(
                f"{error}. That is the default model, since no --model is named: --model "
                f"{EMBEDDED} labels with the small one in the package instead"
            )
        if not self.remembered:
            return error
        options = {name: [getattr(self.settings, name)] for name in self.remembered}
        if "templates" in options:
            options["template"] = [repr(text) for text in options.pop("templates")[0]]
        names = ", ".join(f"--{name} {value}" for name in options for value in options[name])
        return ModelError(
            f"{error}. {self.settings.table} was labelled with {names}, which this command leaves "
            "open; name what to use now, or leave that behind with --relabel"
        )


def choose_model(
    settings: Settings, remembered: ModelChoice | None, table_id: str | None = None
) -> Chosen:
    """Fill in from the table what the command leaves open.

    Another model brings its own labels and preprocessing; so does one that is named together with
    --relabel or --restart, which leave behind what the table remembers of it.
    """
    if settings.model == "auto":  # of a program: the command's option says None for it
        settings = replace(settings, model=None)
    begins_anew = settings.relabel or settings.restart
    may_replace = begins_anew or settings.model is not None
    if remembered is None:
        may_replace = may_replace or settings.top_k is not None
        if settings.model:
            return Chosen(settings, may_replace, table_id=table_id)
        # A table that remembers nothing is of an earlier version, which meant the embedded model.
        decision = None if table_id else decide()
        model, because = (decision.model, decision.reason) if decision else (EMBEDDED, None)
        settings = replace(settings, model=model, model_because=because)
        return Chosen(settings, may_replace, table_id=table_id, decision=decision)
    given = {
        "top_k": settings.top_k,
        "arch": settings.arch,
        "preprocess": settings.preprocess,
        "labels": os.path.abspath(settings.labels) if settings.labels else None,
        "templates": settings.templates or None,
        "activation": settings.activation,
    }
    may_replace = may_replace or any(
        value is not None and value != getattr(remembered, name) for name, value in given.items()
    )
    filled = replace(settings, top_k=settings.top_k or remembered.top_k)
    names: tuple[str, ...] = ()
    if settings.model is None or (remembered.is_named_by(settings.model) and not begins_anew):
        parts: dict[str, Any] = {
            "model": remembered.model,
            "labels": Path(remembered.labels) if remembered.labels else None,
            "arch": remembered.arch,
            "preprocess": remembered.preprocess,
            "templates": remembered.templates or None,
            "activation": remembered.activation,
        }
        because = None if settings.model else remembered.because
        filled = replace(filled, model_because=because)
        added = {
            name: value
            for name, value in parts.items()
            if value is not None and getattr(settings, name) in (None, ())
        }
        filled, names = replace(filled, **added), tuple(added)
    return Chosen(filled, may_replace, names, table_id)


def choose(job: Job, settings: Settings, record: TableRecord | None) -> Chosen:
    """Choose the model: the one asked for, or the table's, or that of a first job, unfinished.

    Raw photos are taken where the table or the job has taken some, too: rows are not dropped, nor
    a job begun anew, for want of what reads them.
    """
    manifest = None if settings.restart else job.manifest
    unfinished = manifest if manifest and job.has_plan else None
    if settings.raw is None and any(
        selection.get("raw")
        for selection in (record and record.selection, unfinished and unfinished.selection)
        if selection
    ):
        settings = replace(settings, raw=True)
    if record is not None:
        remembered = ModelChoice.from_record(record.choice)
        return choose_model(settings, remembered, record.plan_id)
    choice = unfinished.settings.get("choice") if unfinished else None
    return choose_model(settings, ModelChoice.from_record(choice))
