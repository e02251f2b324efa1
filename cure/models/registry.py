"""Names of the encoders and how each is built."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cure.errors import CureError
from cure.models.base import Encoder, seeded
from cure.models.leadcnn import LeadCNN
from cure.models.resnet1d import ResNet1d
from cure.models.resnet1d_wang import ResNet1dWang
from cure.models.vit1d import ViT1d

_ENCODERS: dict[str, Callable[[], Encoder]] = {
    "leadcnn": LeadCNN,
    "resnet1d": ResNet1d,
    "resnet1d_wang": ResNet1dWang,
    "vit1d": ViT1d,
}


def names() -> list[str]:
    """Names that `load` knows."""
    return sorted(_ENCODERS)


def check(chosen: Iterable[str]) -> None:
    """Raise a CureError that names the first unknown encoder and the known ones."""
    for name in chosen:
        if name not in _ENCODERS:
            raise CureError(f"unknown encoder {name!r}: choose from {', '.join(names())} (cure/models/registry.py)")


def load(name: str, weights: str | Path = "random", seed: int = 0) -> Encoder:
    """Build an encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : str
        One of `names()`.
    weights : {"random"} or Path
        Freshly initialised: the floor that any pre-training has to beat; or a safetensors file of this architecture.
    seed : int
        Of the random initialisation; the same seed gives the same weights.

    Raises
    ------
    CureError
        For an unknown name or kind of weights; for a file that is missing, damaged or of another architecture: names
        the file, and the first entry that does not fit.
    """
    check([name])
    with seeded(seed):
        encoder = _ENCODERS[name]().eval()
    if isinstance(weights, Path):
        _fill(encoder, name, weights)
    elif weights != "random":
        raise CureError(f"encoder {name!r} has no weights {weights!r}: only 'random' or a file")
    return encoder


def _fill(encoder: Encoder, name: str, file: Path) -> None:
    if not file.is_file():
        raise CureError(f"no weights {file.parent.name}/{file.name}: make them with `make repro PROFILE=...`")
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads((stored.metadata() or {}).get("about", "{}"))
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise CureError(f"{file.parent.name}/{file.name} is damaged ({error}): delete it and make it again") from error
    mine = encoder.state_dict()
    for key in sorted(mine.keys() | state.keys()):
        if key not in mine or key not in state or mine[key].shape != state[key].shape:
            raise CureError(f"{file.parent.name}/{file.name} does not fit encoder {name!r}: entry {key!r}")
    encoder.load_state_dict(state)
    encoder.pretraining = (about.get("pretraining", "unknown"),)
