"""A small artifact for tests of checks: one stage's notebook, its predictions, table, figure and lock, consistent."""

import json
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from conftest import ROOT
from matplotlib.figure import Figure

from cure import integrity, plots  # noqa: F401

PROFILE = "demo"
CELLS = [
    ("", "import pandas as pd\nfrom cure import plots, predictions, tables\nfrom artifact import bars"),
    ("parameters", 'profile = "demo"\nencoder = "other"'),
    ("", "stage = open_stage(profile)"),
    ("", 'predicted = train(profile)\npredictions.save(predicted, stage, "toy")\npredicted.sample(3)'),
    ("", 'scale = 2 if encoder == "leadcnn" else 0'),
    (
        "",
        "means = predicted.groupby('task', as_index=False)['score'].mean().rename(columns={'score': 'value'})\n"
        "table = tables.save(means.assign(value=means['value'] * scale, metric='score'), stage, 'toy_means')",
    ),
    ("", "tables.save(seconds(profile), stage, 'toy_other')"),
    ("", "shown = table[table['value'] > 0]\nplots.save(bars(shown), stage, 'toy_means', f'{count}')"),
    ("", "plots.save(draw(signals(profile)), stage, 'toy_signal', 'A record.')"),
]  # fmt: skip
CLAIM = """
claims:
  - id: toy-mean
    system: this study
    statement: The mean score of task A is above a half.
    source: tests
    table: toy_means
    select: {task: A, metric: score}
    expected: {above: 0.5}
    decided_by: value
    needs: {data: none, weights: none, hardware: none}
    profiles: [demo]
    command: cure repro --profile demo
    minutes: 1
"""


def bars(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.bar(table["task"], table["value"])
    return figure


def write(root: Path) -> Path:
    """Write the artifact into an empty folder."""
    for name in ("pyproject.toml", "runtime.lock", ".dvcignore"):
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "claims.yaml").write_text(CLAIM)
    cells = [
        {"cell_type": "code", "metadata": {"tags": [tag]} if tag else {}, "source": source} for tag, source in CELLS
    ]
    (root / "notebooks").mkdir()
    (root / "notebooks" / "06_finetune.ipynb").write_text(json.dumps({"cells": cells}))
    rng = np.random.default_rng(0)
    folders = ("tables", "figures", "results/predictions", "results/resources", "reports", "site")
    for kind in folders:
        (root / kind / PROFILE).mkdir(parents=True)
    for encoder in ("a", "b"):
        frame = pd.DataFrame(
            {"encoder": encoder, "task": np.repeat(["A", "B"], 20), "record_id": np.tile(range(20), 2)}
        )
        frame["score"] = rng.uniform(0.3, 0.7, len(frame)).astype(np.float32)
        frame.to_parquet(root / f"results/predictions/{PROFILE}/toy-{encoder}.parquet")
    files = sorted((root / f"results/predictions/{PROFILE}").glob("*.parquet"))
    whole = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    means = whole.groupby("task", as_index=False)["score"].mean().rename(columns={"score": "value"})
    table = means.assign(value=means["value"] * 2, metric="score")
    table.to_csv(root / f"tables/{PROFILE}/toy_means.csv", index=False, float_format="%.6g", lineterminator="\n")
    assert matplotlib.rcParams["savefig.dpi"] == 160, "cure.plots sets the style"
    bars(table).savefig(root / f"figures/{PROFILE}/toy_means.png", metadata={"Software": None})
    bars(table.assign(value=1)).savefig(root / f"figures/{PROFILE}/toy_signal.png", metadata={"Software": None})
    (root / f"results/resources/{PROFILE}/finetune.json").write_text(
        '{"stage": "finetune", "wall_s": 600, "cpu_s": 900, "peak_rss_mb": 2000, "machine": {"cores": 2}}'
    )
    lock(root)
    return root


def lock(root: Path) -> None:
    """Record the files as they are in `dvc.lock`."""
    outs = [f"{kind}/{PROFILE}" for kind in ("tables", "figures", "results/predictions")]
    lines = ["schema: '2.0'", "stages:", f"  render@{PROFILE}:", "    outs:"]
    for path in outs:
        lines += [f"    - path: {path}", f"      md5: {integrity.folder_md5(root / path, root)}"]
    (root / "dvc.lock").write_text("\n".join(lines) + "\n")
