"""Reference outputs of the published implementations, where they are at hand (they are not part of the project)."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from torch import nn

#: Folder of the reference files; set CURE_GOLDEN_DIR to use another.
FOLDER = Path(os.environ.get("CURE_GOLDEN_DIR", ROOT.parent / "shared" / "golden"))

here = pytest.mark.skipif(not FOLDER.is_dir(), reason="no reference outputs here: set CURE_GOLDEN_DIR to their folder")


def about(name: str) -> dict:
    """What `<name>.keys.json` says of a case: config, state_dict (name to shape and dtype), n_parameters, ..."""
    return json.loads((FOLDER / f"{name}.keys.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    """Inputs `x` and outputs `out_*` of a case."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


def fill(model: nn.Module, weights: str) -> nn.Module:
    """Give a model the weights of a case, from its safetensors file or else by the name-keyed recipe."""
    file = FOLDER / f"{weights}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    spec = importlib.util.spec_from_file_location("fill_recipe", FOLDER / "fill_recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.fill_(model, keep=about(weights)["keep_unfilled"])
    return model.eval()


def assert_same_names(model: nn.Module, name: str) -> None:
    """State-dict names, shapes and parameter count are those of the original; works on the meta device."""
    said = about(name)
    stored = {key: entry["shape"] for key, entry in said["state_dict"].items()}
    mine = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert mine == stored
    assert sum(p.numel() for p in model.parameters()) == said["n_parameters"]


def assert_close(mine: torch.Tensor | np.ndarray, reference: np.ndarray, what: str, rtol=1e-4, atol=2e-5) -> None:
    """Equal within the tolerance of the reference; a failure says the worst difference."""
    mine = np.asarray(mine, np.float64)
    assert mine.shape == reference.shape, f"{what}: {mine.shape} is not {reference.shape}"
    worst = np.abs(mine - reference).max()
    print(f"{what}: worst difference {worst:.1e}, largest value {np.abs(reference).max():.3g}")
    np.testing.assert_allclose(mine, reference, rtol=rtol, atol=atol, err_msg=what)
