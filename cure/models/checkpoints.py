"""Files of weights, read without running anything that is in them.

Published checkpoints are pickles, and a pickle can run any code. Files are read with `torch.load(weights_only=True)`,
which builds tensors and plain containers only. Some files hold further objects (settings, an optimiser's state). In
their place `convert` puts inert stand-ins and keeps the tensors alone.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cure import download, paths
from cure.errors import CureError

#: Keys under which published files keep a state dict, the more telling first: a file may have several.
LAYOUTS = ("ecg_model", "encoder", "model_state_dict", "state_dict", "model")
#: A numpy number beside the weights, as ECGFounder's validation score, is no reason for a conversion.
_NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
#: Names of a weight-normed weight: of the older function and of the newer parametrisation in torch.
_WEIGHT_NORM = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))


def shown(file: Path) -> str:
    """A file as messages name it: within the project, else with its folder."""
    root, file = paths.root(), file.absolute()
    return str(file.relative_to(root)) if file.is_relative_to(root) else f"{file.parent.name}/{file.name}"


def about(file: Path) -> dict[str, Any]:
    """What the header of a safetensors file written by CURE says; empty for other files.

    Raises
    ------
    CureError
        If it is no safetensors file though it is called one.
    """
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="pt") as stored:
            said = json.loads((stored.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CureError(_damaged(file, error)) from error
    return said if isinstance(said, dict) else {}


def read_state(file: Path, layout: str | None = None) -> dict[str, Tensor]:
    """State dict of a safetensors file or of a checkpoint (`.pt`, `.pth`, `.ckpt`); nothing in it is run.

    Parameters
    ----------
    file : Path
    layout : str, optional
        Key under which the state dict lies; where the file does not have it, it is taken to be a bare state dict.

    Returns
    -------
    dict
        Name -> tensor, on the CPU, mapped from the file where its format allows.

    Raises
    ------
    CureError
        For a file that is missing, damaged, without a state dict, or that holds objects which need `convert`.
    """
    if not file.is_file():
        raise CureError(f"no weights {shown(file)}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise CureError(_damaged(file, error)) from error
    if names := foreign(file):
        raise CureError(
            f"{shown(file)} holds objects besides tensors ({download.few(names)}). "
            f"`cure weights convert {shown(file)}` takes the tensors out of it; nothing in it is run."
        )
    return _state(_load(file), layout, file)


def convert(file: Path, out: Path) -> None:
    """Copy the state dict of a checkpoint to a safetensors file, whatever other objects it holds; none is built.

    Each class or function that the file names is replaced by an inert stand-in: it can be called and given a state,
    and does nothing. The header names the source's SHA-256.

    Raises
    ------
    CureError
        For a file that is missing, damaged or without a state dict, that names what torch blocks (`os`, `sys`), or
        that is of a torch before 1.6 and holds objects.
    """
    if not file.is_file() or file.suffix == ".safetensors":
        raise CureError(f"{shown(file)} is not a checkpoint to convert: give a .pt, .pth or .ckpt file that exists")
    content = _load(file, foreign(file))
    layout = next((key for key in LAYOUTS if isinstance(content, dict) and _is_state(content.get(key))), None)
    # A copy each: files share tensors between names, which safetensors does not allow.
    state = {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in _state(content, layout, file).items()
    }
    said = {"source": file.name, "source_sha256": download.sha256_file(file), "layout": layout}
    with paths.atomic(out) as part:
        save_file(state, part, metadata={"about": json.dumps(said, sort_keys=True)})


def foreign(file: Path) -> list[str]:
    """Full names of the classes and functions in a checkpoint that only `convert` can pass over, sorted.

    Files of torch before 1.6 cannot be asked: the answer for them is none.

    Raises
    ------
    CureError
        If it is damaged.
    """
    if not _zipped(file):
        return []
    try:
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(str(file))) - set(_NUMBERS))
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise CureError(_damaged(file, error)) from error


def with_names_of(state: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename weight-normed weights to the form, older or newer, that `wanted` has; all else stays."""
    renamed = {}
    for name, value in state.items():
        others = [
            name.removesuffix(one) + two
            for pair in _WEIGHT_NORM
            for one, two in (pair, pair[::-1])
            if name not in wanted and name.endswith(f".{one}")
        ]
        renamed[next((other for other in others if other in wanted), name)] = value
    return renamed


def _load(file: Path, names: Collection[str] = ()) -> Any:
    try:
        with torch.serialization.safe_globals([(_inert(name), name) for name in (*_NUMBERS, *names)]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=_zipped(file))
    except Exception as error:  # whatever a damaged or hostile file provokes
        if names:
            raise CureError(
                f"{shown(file)} cannot be read as tensors and plain values; it names {download.few(names)}. It may be "
                "damaged or hostile: do not use it."
            ) from error
        if not _zipped(file) and "not an allowed global" in str(error):
            raise CureError(
                f"{shown(file)} is of a torch before 1.6 and holds objects besides tensors, which CURE cannot pass "
                "over in this format. If you trust it, load it with torch and save its state dict alone (`torch.save`)."
            ) from error
        raise CureError(_damaged(file, error)) from error


def _inert(name: str) -> type:
    """A class that takes any arguments and any state, and does nothing; in a dict's place it makes an empty dict."""

    def new(cls: type, *_: object, **__: object) -> object:
        return {} if name == "collections.defaultdict" else object.__new__(cls)

    return type("Inert", (), {"__new__": new, "__setstate__": lambda self, state: None})


def _state(content: Any, layout: str | None, file: Path) -> dict[str, Tensor]:
    inner = content.get(layout) if isinstance(content, dict) and layout else None
    state = inner if isinstance(inner, dict) else content
    if not _is_state(state):
        where = f"under {layout!r} or bare" if layout else "bare"
        keys = download.few(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CureError(f"{shown(file)} holds no state dict, {where}; it holds: {keys}")
    return dict(state)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _zipped(file: Path) -> bool:
    """Whether a checkpoint is in the format of torch 1.6 and later."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _damaged(file: Path, error: Exception) -> str:
    reason = str(error).split("\n", 1)[0][:200]
    return f"{shown(file)} is damaged or no file of weights ({reason}): delete it and get or make it again"
