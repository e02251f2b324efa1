"""Names of the encoders, how each is built, and where its weights come from."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from cure.catalogue import entry
from cure.errors import CureError
from cure.models import weights as store
from cure.models.base import Encoder, seeded
from cure.models.checkpoints import about, read_state, shown, with_names_of
from cure.models.ecg_cpc import EcgCpc
from cure.models.ecg_fm import EcgFm
from cure.models.ecg_jepa import EcgJepa
from cure.models.hubert_ecg import HubertEcg
from cure.models.ked import Ked
from cure.models.leadcnn import LeadCNN
from cure.models.merl import MerlResNet18, MerlViTTiny
from cure.models.net1d import Clef, EcgFounder
from cure.models.resnet1d import ResNet1d
from cure.models.resnet1d_wang import ResNet1dWang
from cure.models.s4_classifier import S4Classifier
from cure.models.st_mem import StMem
from cure.models.vit1d import ViT1d
from cure.models.weimann_jepa import WeimannJepa
from cure.models.xresnet1d import XResNet1d101

#: Small encoders that are trained here.
OWN: dict[str, Callable[[], Encoder]] = {
    "leadcnn": LeadCNN,
    "resnet1d": ResNet1d,
    "resnet1d_wang": ResNet1dWang,
    "vit1d": ViT1d,
    "xresnet1d101": XResNet1d101,
    "s4": S4Classifier,
}
#: Published architectures; `cure/models/catalogue.yaml` says what they are.
PUBLISHED: dict[str, Callable[[], Encoder]] = {
    "ecgfounder": EcgFounder,
    "ecgfounder-1lead": partial(EcgFounder, n_leads=1),
    "hubert-ecg-small": partial(HubertEcg, "small"),
    "hubert-ecg-base": partial(HubertEcg, "base"),
    "hubert-ecg-large": partial(HubertEcg, "large"),
    "ecg-fm": EcgFm,
    "ecg-jepa": EcgJepa,
    "st-mem": StMem,
    "ecg-cpc": EcgCpc,
    "merl-resnet18": MerlResNet18,
    "merl-vit-tiny": MerlViTTiny,
    "ked": Ked,
    "clef-small": partial(Clef, "small"),
    "clef-medium": partial(Clef, "medium"),
    "clef-large": partial(Clef, "large"),
    "weimann-jepa-xs": partial(WeimannJepa, "xs"),
    "weimann-jepa-s": partial(WeimannJepa, "s"),
    "weimann-jepa-b": partial(WeimannJepa, "b"),
}


def names() -> list[str]:
    """Names that `load` knows: the encoders trained here, then the published ones."""
    return [*OWN, *PUBLISHED]


def check(chosen: Iterable[str]) -> None:
    """Raise a CureError that names the first unknown encoder and the known ones."""
    known = names()
    for name in chosen:
        if name not in known:
            raise CureError(f"unknown encoder {name!r}: choose from {', '.join(known)} (cure/models/registry.py)")


def load(name: str, weights: str | Path = "random", seed: int = 0) -> Encoder:
    """Build an encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : str
        One of `names()`.
    weights : {"random", "hub"} or path
        Freshly initialised: the floor that any pre-training has to beat; or the published weights, which
        `cure weights fetch` gets; or a file of this architecture: safetensors, or a checkpoint as it was published.
    seed : int
        Of the random initialisation; the same seed gives the same weights.

    Raises
    ------
    CureError
        For an unknown name; for weights that are not published, not here or not the pinned ones; for a file that is
        missing, damaged or of another architecture: names the file, the first entry that does not fit, and how to get
        a file that does.
    """
    check([name])
    file = None if weights == "random" else _published(name) if weights == "hub" else _given(name, weights)
    with seeded(seed):
        encoder = {**OWN, **PUBLISHED}[name]().eval()
    if file:
        try:
            _fill(encoder, name, file)
        except CureError as error:
            if "`cure weights" in str(error):
                raise
            raise CureError(f"{str(error).rstrip('.')}. {_remedy(name)}") from error
        seen = about(file).get("pretraining", "unknown")
        encoder.pretraining = entry(name).data if weights == "hub" else (seen,)
    return encoder


def _published(name: str) -> Path:
    if name in OWN:
        raise CureError(f"encoder {name!r} has no weights 'hub': only 'random' or a file")
    return store.verify(name)


def _given(name: str, weights: object) -> Path:
    if not isinstance(weights, str | Path):
        raise CureError(f"no weights {weights!r}: say 'random', 'hub' or the path of a file. {_remedy(name)}")
    file = Path(weights)
    if not file.is_file():
        other = "make them with `make repro PROFILE=...`." if name in OWN else f"no such file. {_remedy(name)}"
        raise CureError(f"no weights {shown(file)}: {other} Weights are 'random', 'hub' or a file.")
    return file


def _remedy(name: str) -> str:
    """Where a right file for an encoder comes from."""
    if name in OWN:
        return "`make repro PROFILE=...` makes weights of this encoder."
    if entry(name).home is None:
        return f"There are no published weights of {name}: train it."
    return store.how(name)


def _fill(encoder: Encoder, name: str, file: Path) -> None:
    layout = entry(name).layout if name in PUBLISHED else None
    state = encoder.accept(read_state(file, layout))
    mine = encoder.state_dict()  # after `accept`, which may fit heads to the file
    state = with_names_of(state, mine)
    for key in sorted(mine.keys() | state.keys()):
        if key not in state:
            fault = "is missing"
        elif key not in mine:
            fault = "is not of this architecture"
        elif state[key].shape != mine[key].shape:
            fault = f"has shape {tuple(state[key].shape)}, not {tuple(mine[key].shape)}"
        else:
            continue
        raise CureError(f"{shown(file)} does not fit encoder {name!r}: entry {key!r} {fault}")
    encoder.load_state_dict(state)
