"""Names of the encoders and how each is built."""

from collections.abc import Callable, Iterable

from cure.errors import CureError
from cure.models.base import Encoder, seeded
from cure.models.resnet1d import ResNet1d
from cure.models.vit1d import ViT1d

_ENCODERS: dict[str, Callable[[], Encoder]] = {"resnet1d": ResNet1d, "vit1d": ViT1d}


def names() -> list[str]:
    """Names that `load` knows."""
    return sorted(_ENCODERS)


def check(chosen: Iterable[str]) -> None:
    """Raise a CureError that names the first unknown encoder and the known ones."""
    for name in chosen:
        if name not in _ENCODERS:
            raise CureError(f"unknown encoder {name!r}: choose from {', '.join(names())} (cure/models/registry.py)")


def load(name: str, weights: str = "random", seed: int = 0) -> Encoder:
    """Build an encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : str
        One of `names()`.
    weights : {"random"}
        Freshly initialised: the floor that any pre-training has to beat.
    seed : int
        Of the random initialisation; the same seed gives the same weights.

    Raises
    ------
    CureError
        For an unknown name or kind of weights.
    """
    check([name])
    if weights != "random":
        raise CureError(f"encoder {name!r} has no weights {weights!r}: only 'random' exists for it")
    with seeded(seed):
        return _ENCODERS[name]().eval()
