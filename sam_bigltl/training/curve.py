"""The curve of a run, from its CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np


def plot_log(folder: Path) -> Path:
    """Draw loss and IoU of `log.csv`, and mIoU of `val.csv` where there is one, against images seen: `curve.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = np.array([int(row["images"]) for row in rows]) / 1000
    batch = int(rows[0]["images"]) / int(rows[0]["step"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = {
        "loss": "loss",
        "bce": "bce",
        "dice": "dice",
        "cosine": "1 - cosine to teacher",
        "mse": "relative squared error",
        "label": "labels",
        "feature": "1 - cosine to the teacher's tokens",
        "logit": "teacher's probabilities",
    }
    for key, name in names.items():
        values = [float(row[key]) for row in rows if key in row]
        if any(values):
            left.plot(images, values, label=name, linewidth=1)
    left.set(xlabel="thousand images seen", ylabel="training loss", ylim=(0, None))
    if "iou" in rows[0]:
        iou = [100 * float(row["iou"]) for row in rows]
        right.plot(images, iou, color="0.7", linewidth=1, label="training, all prompts")
    labelled = "top1" in rows[0]
    if (folder / "val.csv").exists():
        with open(folder / "val.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        value = "top1" if labelled else "all"
        for kind, ratio in dict.fromkeys((row.get("prompt", ""), row["keep_ratio"]) for row in rows):
            line = [row for row in rows if (row.get("prompt", ""), row["keep_ratio"]) == (kind, ratio)]
            prompt = {"box": "box, ", "point": "1 click, "}.get(kind, "")
            name = f"validation, {prompt}keep {ratio}"
            seen = [int(r["step"]) * batch / 1000 for r in line]
            right.plot(seen, [float(r[value]) for r in line], marker="o", label=name)
    right.set(xlabel="thousand images seen", ylabel="top-1, %" if labelled else "mIoU, %", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    path = folder / "curve.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
