"""What benchmarks.gpu measured, in a few ratios with their goals and as a page of Markdown."""

from typing import Any

from .main_process import AT_LEAST

_WHOLE_OF_BOUND = 0.85  # whole run / the slower of its model and its decoding
_RUN_OF_COMPILED = 0.95  # the model as a run has it / the best of torch.compile
_MOST_GROWTH = 0.05  # of the main process's memory, from a run's middle third to its last


def summarise(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios that have goals, by name: the ratio, the goal and whether it was met. Only of what
    was measured.
    """
    found: dict[str, Any] = {}
    models = _records(parts, "model")
    rates = {
        (record["arch"], record["precision"], record["way"]): record["images_per_s"]
        for record in models
        if "images_per_s" in record
    }
    for arch in dict.fromkeys(record["arch"] for record in models):
        compiled = [rates.get((arch, "bf16", way)) for way in ("compiled", "reduce_overhead")]
        best, ours = (
            max(rate or 0 for rate in compiled),
            rates.get((arch, "bf16", "run, compiled")),
        )
        if best and ours:
            name = f"{arch}: model as a run has it / best of torch.compile"
            found[name] = _at_least(ours / best, _RUN_OF_COMPILED)
    decoding = next(iter(_records(parts, "decode")), {}).get("images_per_s")
    for record in _records(parts, "whole"):
        if "failed" in record:
            continue
        how = {True: "compiled", False: "eager", None: "as chosen"}[record["compile"]]
        # What is chosen for so many images is to compile (placement.py).
        model = rates.get(
            (record["arch"], "bf16", f"run, {'eager' if how == 'eager' else 'compiled'}")
        )
        if model and decoding:
            bound = min(model, decoding)
            name = f"{record['arch']}, {how}: whole / min(model, decode)"
            found[name] = _at_least(record["images_per_s"] / bound, _WHOLE_OF_BOUND)
            under_way = record["images_per_s_under_way"] or 0.0
            found[f"{name}, once under way"] = _at_least(under_way / bound, _WHOLE_OF_BOUND)
        if record["memory_growth"] is not None:
            growth = record["memory_growth"]
            name = f"{record['arch']}, {how}: growth of the main process's memory"
            found[name] = {"value": growth, "goal": _MOST_GROWTH, "met": growth <= _MOST_GROWTH}
    for record in _records(parts, "main"):
        name = "images a core-second of the main process"
        found[name] = _at_least(record["images_per_core_s"], AT_LEAST)
    for record in _records(parts, "memory"):
        found["goes on after running out of memory"] = _at_least(float(record["retried"]), 1)
        found["with the same best classes"] = _at_least(record["same_best_class"], 0.99)
    return found


def _at_least(value: float, goal: float) -> dict[str, Any]:
    return {"value": round(value, 3), "goal": goal, "met": value >= goal}


def _records(parts: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [record for part in parts if part["part"] == name for record in part["records"]]


def to_markdown(result: dict[str, Any]) -> str:
    """The page for docs."""
    parts, cpu = result["parts"], result["cpu"]
    gpu = result["gpu"]
    where = f"{gpu['name']}, {gpu['memory_mb']:,} MB" if gpu else "no GPU: toy sizes on a CPU"
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"{where}; {cpu['cores']} cores of {cpu['name']}; {versions}; "
        f"`python -m benchmarks.gpu`, {result['minutes']} minutes.",
        "",
        "| model alone | precision | way | images/s | spread | first batch after | most memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in _records(parts, "model"):
        start = f"| {record['arch']} | {record['precision']} | {record['way']} |"
        why = record.get("left_out") or record.get("failed")
        if why:
            lines.append(f"{start} {' '.join(why.split())[:80].replace('|', '/')} | | | |")
            continue
        low, high = record["spread"]
        peak = f"{record['peak_mb']:,} MB" if record["peak_mb"] is not None else ""
        lines.append(
            f"{start} {record['images_per_s']:,.0f} | {low:,.0f}..{high:,.0f} | "
            f"{record['first_s']} s | {peak} |"
        )
    lines += [
        "",
        "| whole run | photos | images/s | once under way | seconds | start and end | "
        "memory: main, workers, GPU |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for record in _records(parts, "whole"):
        how = {True: "compiled", False: "eager", None: "as chosen"}[record["compile"]]
        if "failed" in record:
            lines.append(f"| {record['arch']}, {how} | failed, see gpu.json | | | | | |")
            continue
        most = {
            name: max((entry.get(f"{name}_mb", 0) for entry in record["memory"]), default=0)
            for name in ("main", "workers", "gpu")
        }
        memory = ", ".join(f"{megabytes:,.0f} MB" for megabytes in most.values())
        lines.append(
            f"| {record['arch']}, {how} | {record['images']:,} | {record['images_per_s']:,.0f} | "
            f"{record['images_per_s_under_way'] or 0:,.0f} | {record['seconds']:.1f} | "
            f"{record['start_s']} s | {memory} |"
        )
    lines += ["", "| | measured | goal | |", "|---|---|---|---|"]
    for record in _records(parts, "decode"):
        rate = f"{record['images_per_s']:,.0f} images/s"
        lines.append(f"| decoding alone, {record['workers']} workers | {rate} | | |")
    for name, entry in result["summary"].items():
        verdict = ("met" if entry["met"] else "missed") if gpu else "toy"
        lines.append(f"| {name} | {entry['value']:,} | {entry['goal']:,} | {verdict} |")
    for part in parts:
        if part["problem"]:
            what = f"{part['part']} {' '.join(part['arguments'])}"
            lines += ["", f"{what}: {part['problem'].splitlines()[0]}"]
    return "\n".join(lines) + "\n"
