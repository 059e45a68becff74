"""What label-images wants to take of others' time, and how far it is: for benchmarks.compare."""

from dataclasses import dataclass

# Of ours in a precision to timm in bf16, by architecture, for small photos.
_BESIDE_TIMM = {
    ("vit_base_patch16_224", "bf16"): 0.85,
    ("vit_base_patch16_224", "int8"): 0.55,
    ("vit_tiny_patch16_224", "bf16"): 0.70,
    ("vit_tiny_patch16_224", "int8"): 0.45,
}
# Of ours to OpenVINO's script in the same precision, by kind of photos.
_BESIDE_OPENVINO = {"small": 0.95, "mixed": 0.75, "large": 0.40}
_MODEL_OF_OPENVINOS = 0.98
_WHOLE_OF_BOUND = 0.92


@dataclass(frozen=True)
class _Goal:
    """A ratio and its goal. Of seconds it is to be at most that, of images/s at least."""

    name: str
    ratio: float
    goal: float
    at_most: bool

    @property
    def is_met(self) -> bool:
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


def report_goals(
    arch: str,
    photos: str,
    n_images: int,
    seconds: dict[str, float],
    images_per_s: dict[str, dict[str, float]],
) -> dict[str, dict[str, float | bool]]:
    """Print each goal that was measured, and return them for the record.

    `seconds` are medians by contender, `images_per_s` those of stages by precision.
    """
    goals: list[_Goal] = []
    for precision, rates in images_per_s.items():
        ours = seconds.get(f"label-images, {precision}")
        if ours is None:
            continue
        theirs = seconds.get("timm, bf16")
        limit = _BESIDE_TIMM.get((arch, precision))
        if theirs and limit and photos == "small":
            goals.append(_Goal(f"{precision} / timm bf16", ours / theirs, limit, True))
        theirs = seconds.get(f"openvino, {precision}")
        if theirs:
            name = f"{precision} / OpenVINO's script"
            goals.append(_Goal(name, ours / theirs, _BESIDE_OPENVINO[photos], True))
        if "openvino_model_only" in rates:
            ratio = rates["model_only"] / rates["openvino_model_only"]
            name = f"{precision}, model only / OpenVINO's own benchmark"
            goals.append(_Goal(name, ratio, _MODEL_OF_OPENVINOS, False))
        whole = n_images / ours
        name = f"{precision}, whole / bound"
        goals.append(_Goal(name, whole / rates["bound"], _WHOLE_OF_BOUND, False))
    for goal in goals:
        wish = "at most" if goal.at_most else "at least"
        verdict = "met" if goal.is_met else "missed"
        print(f"{goal.name:<52} {goal.ratio:6.3f}  {wish} {goal.goal:.2f}: {verdict}")
    return {
        goal.name: {"ratio": round(goal.ratio, 3), "goal": goal.goal, "met": goal.is_met}
        for goal in goals
    }
