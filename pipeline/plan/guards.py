"""What a run may not do to a table without a word from the user.

Labels are not lost to a night in which something cannot be seen, and not replaced by a command that
did not ask for it.
"""

from jobs.job import Job
from jobs.manifest import ModelIdentity
from pipeline.table.record import TableRecord

from .choice import Chosen, ModelChoice
from .compare import Comparison

# So few rows may be labelled again without a word from the user.
FEW_ROWS = 200


def why_refused(comparison: Comparison, chosen: Chosen, record: TableRecord | None) -> str | None:
    """Say why a plan for the table of `record` is not carried out: it would cost labels, and nobody
    said that it may.
    """
    settings, unseen, plan = chosen.settings, comparison.unseen, comparison.plan
    n_stale = plan.counts["stale"] + plan.counts["relabelled"]
    because = ", ".join(comparison.stale_because)
    if unseen.n_rows and (because or settings.restart) and not plan.rescores:
        why = f"this changed: {because}" if because else "--restart was given"
        return (
            f"{'; '.join(unseen.reasons[:3])}: {unseen.n_rows:,} rows of {settings.table} cannot "
            f"be labelled again, and all would have to be, since {why}. The table stays as it is: "
            "mount what is missing and run the same command again, keep to the model and the "
            "settings that the table has, or drop those rows with --forget FOLDER"
        )
    if record is None:
        return None
    finds_nothing = not plan.counts["found"] and not unseen.n_rows
    n_gone = record.counts["rows"] if settings.restart else plan.counts["gone"]
    if n_gone and finds_nothing and not settings.forget:
        if comparison.n_young:
            return (
                f"all {comparison.n_young:,} images changed too lately to be labelled (--settle), and "
                f"all {n_gone:,} rows of {settings.table} would go. The table stays as it is: run the "
                "same command again later"
            )
        return (
            f"no image was found, and all {n_gone:,} rows of {settings.table} would go, "
            "with nothing in their place. The table stays as it is: name the folders that it is of, "
            "drop their rows with --forget FOLDER, or choose another --out"
        )
    if not n_stale or chosen.may_replace:
        return None
    if comparison.is_other_model and ModelChoice.from_record(record.choice) is None:
        return (
            f"{settings.table} was labelled with the model {record.model}, and this command names "
            f"none, which stands for {settings.model}; name the table's with --model, or replace "
            "its labels with --relabel. The table stays as it is"
        )
    if n_stale <= FEW_ROWS:
        return None
    return (
        f"{n_stale:,} labels of {settings.table} would be replaced, since this changed: "
        f"{because}. Nobody asked for that, so the table stays as it is; run once with --relabel "
        "to replace them, or name the --model"
    )


def why_not_dropped(
    job: Job, chosen: Chosen, identity: ModelIdentity, record: TableRecord | None
) -> str | None:
    """Say why an unfinished job of another model is neither gone on with nor dropped.

    A command that names no model means the table's, and that is no reason to drop what the job has
    done.
    """
    manifest = job.manifest
    if record is None or manifest is None or not job.has_plan or chosen.may_replace:
        return None
    choice = ModelChoice.from_record(manifest.settings.get("choice"))
    is_other = choice is not None and choice != ModelChoice.of(chosen.settings, identity.address)
    if manifest.plan_id == record.plan_id or not is_other or not job.receipts(manifest):
        return None
    return (
        f"{chosen.settings.table} has an unfinished job of the model {manifest.model}, and this "
        "command means the table's; go on with the job by the command that began it, or drop it "
        f"by naming --model {chosen.settings.model}"
    )
