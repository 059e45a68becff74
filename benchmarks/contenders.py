"""What people use instead of label-images, each as a process of its own: photos in, labels in
Parquet out.

    python -m benchmarks.contenders NAME PHOTOS MODELS OUT --precision fp32

MODELS is a folder that benchmarks.compare makes: `bundle` for label-images and, with timm's keys,
for timm; `transformers` and `openvino` with the same weights. Each imports only what it needs, as its user would.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

K = 5
BATCH_SIZE = 32


def one_by_one(photos: Path, models: Path, out: Path, precision: str) -> None:
    """The write-ups' way: open, transform, predict, one photo after another."""
    import pandas as pd
    import torch
    from PIL import Image

    classifier, transform = _bundle(models), _transform(models)
    rows = []
    with torch.no_grad():
        for path in sorted(photos.iterdir()):
            logits = classifier.model(transform(Image.open(path).convert("RGB"))[None])
            rows.append(_row(path.name, *torch.softmax(logits[0], dim=-1).topk(K)))
    pd.DataFrame(rows).to_parquet(out)


def script(photos: Path, models: Path, out: Path, precision: str) -> None:
    """What a good engineer writes in an hour: DataLoader, Pillow, torchvision, autocast, pandas."""
    import pandas as pd
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    paths, transform = sorted(photos.iterdir()), _transform(models)

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(paths[index]).convert("RGB")), paths[index].name

    model, rows = _timm_model(models), []
    loader = DataLoader(Photos(), batch_size=BATCH_SIZE, num_workers=os.cpu_count() or 1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for images, names in loader:
            best, class_ids = torch.softmax(model(images).float(), dim=-1).topk(K)
            rows += [_row(*row) for row in zip(names, best, class_ids, strict=True)]
    pd.DataFrame(rows).to_parquet(out)


def timm(photos: Path, models: Path, out: Path, precision: str) -> None:
    """timm's dataset, loader, transforms and model, as its inference script puts them together."""
    import pandas as pd
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    values = json.loads((models / "bundle" / "config.json").read_text())["preprocess"]
    dataset = create_dataset("", root=str(photos))
    loader = create_loader(
        dataset,
        input_size=(3, values["crop_size"], values["crop_size"]),
        batch_size=BATCH_SIZE,
        use_prefetcher=False,
        interpolation=values["interpolation"],
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        crop_pct=values["crop_size"] / values["resize_size"],
        num_workers=os.cpu_count() or 1,
        device=torch.device("cpu"),
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, results = _timm_model(models).to(dtype), []
    with torch.inference_mode():
        for images, _ in loader:
            results.append(torch.softmax(model(images.to(dtype)).float(), dim=-1).topk(K))
    best, class_ids = (torch.cat(parts) for parts in zip(*results, strict=True))
    names = [dataset.filename(index, basename=True) for index in range(len(dataset))]
    pd.DataFrame([_row(*row) for row in zip(names, best, class_ids, strict=True)]).to_parquet(out)


def transformers(photos: Path, models: Path, out: Path, precision: str) -> None:
    """transformers' image-classification pipeline, batched."""
    import pandas as pd
    import torch
    from transformers import pipeline

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    classify = pipeline(
        "image-classification", str(models / "transformers"), device="cpu", dtype=dtype, top_k=K
    )
    paths = [str(path) for path in sorted(photos.iterdir())]
    results = classify(paths, batch_size=BATCH_SIZE, num_workers=os.cpu_count() or 1)
    rows = [
        {"path": path, "top_k": json.dumps(best)} for path, best in zip(paths, results, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(out)


def openvino(photos: Path, models: Path, out: Path, precision: str) -> None:
    """OpenVINO as its documentation has it: a DataLoader before, its queue of requests, and a graph
    that was converted, and for int8 quantised, on an earlier day; compiled, it comes from its
    cache.
    """
    import numpy as np
    import openvino as ov
    import pandas as pd
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    paths, transform = sorted(photos.iterdir()), _transform(models)

    class Photos(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(paths[index]).convert("RGB"))

    core = ov.Core()
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "CACHE_DIR": str(models / "openvino" / "cache")}
    if precision != "int8":
        options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    graph = models / "openvino" / ("int8.xml" if precision == "int8" else "float.xml")
    model = core.compile_model(str(graph), "CPU", options)
    batch_size = model.input(0).shape[0]
    results: dict[int, Any] = {}

    def keep(request: Any, number: int) -> None:
        logits = request.get_output_tensor(0).data.astype(np.float32)  # [B, K]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        class_ids = np.argsort(-scores, axis=1)[:, :K]  # [B, k]
        results[number] = class_ids, np.take_along_axis(scores, class_ids, axis=1)

    queue = ov.AsyncInferQueue(model)
    queue.set_callback(keep)
    loader = DataLoader(Photos(), batch_size=batch_size, num_workers=os.cpu_count() or 1)
    for number, images in enumerate(loader):
        missing = batch_size - len(images)  # in the last batch: the graph takes whole ones alone
        inputs = np.pad(images.numpy(), ((0, missing), (0, 0), (0, 0), (0, 0)))
        queue.start_async({0: inputs}, number)
    queue.wait_all()
    class_ids, best = (
        np.concatenate([results[number][part] for number in sorted(results)]) for part in (0, 1)
    )
    rows = zip(paths, best, class_ids, strict=False)  # the padding has no path
    pd.DataFrame([_row(path.name, *row) for path, *row in rows]).to_parquet(out)


def _bundle(models: Path) -> Any:
    from vit.classifier import load_classifier

    return load_classifier(str(models / "bundle"))


def _timm_model(models: Path) -> Any:
    import timm
    from safetensors.torch import load_file

    values = json.loads((models / "bundle" / "config.json").read_text())
    model = timm.create_model(values["timm"], num_classes=values["architecture"]["n_classes"])
    model.load_state_dict(load_file(models / "bundle" / "model.safetensors"))
    return model.eval()


def _transform(models: Path) -> Any:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    values = json.loads((models / "bundle" / "config.json").read_text())["preprocess"]
    return transforms.Compose(
        [
            transforms.Resize(values["resize_size"], InterpolationMode(values["interpolation"])),
            transforms.CenterCrop(values["crop_size"]),
            transforms.ToTensor(),
            transforms.Normalize(values["mean"], values["std"]),
        ]
    )


def _row(name: str, best: Any, class_ids: Any) -> dict[str, Any]:
    return {"path": name, "class_ids": class_ids.tolist(), "probabilities": best.tolist()}


CONTENDERS: dict[str, Callable[[Path, Path, Path, str], None]] = {
    "one_by_one": one_by_one,
    "script": script,
    "timm": timm,
    "transformers": transformers,
    "openvino": openvino,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("photos", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32")
    arguments = parser.parse_args()
    CONTENDERS[arguments.name](
        arguments.photos, arguments.models, arguments.out, arguments.precision
    )


if __name__ == "__main__":
    main()
