"""`cure embed`: embeddings of a user's own ECGs, one row per record."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cure import config, models, paths
from cure.embed import HUB
from cure.errors import CureError
from cure.models.base import InputSpec
from cure.models.registry import OWN as TRAINED_HERE
from cure.own.encode import Runner, notes
from cure.own.find import Item
from cure.own.record import Given, Record
from cure.own.stream import Job, Summary, run
from cure.signals import LEADS


@dataclass(frozen=True)
class How:
    """How a run works, which its result does not depend on but for the last digits.

    Attributes
    ----------
    batch_size : int
        Windows per forward pass.
    threads : int
        Batches at work at the same time.
    workers : int
        Processes that read records; 0 reads in a thread of this one.
    device : {"cpu", "cuda"}
    restart : bool
        Throw away the output or the parts of an earlier run.
    """

    batch_size: int = 32
    threads: int = 2
    workers: int = 0
    device: str = "cpu"
    restart: bool = False


def embed(
    items: list[Item],
    given: Given,
    out: Path,
    *,
    model: str,
    weights: str | None = None,
    profile: str = "demo",
    pooling: str = "mean",
    how: How | None = None,
) -> Summary:
    """Embed records into a Parquet file.

    Parameters
    ----------
    items : list of Item
        See `cure.own.find.find`.
    given : Given
        What their files do not say.
    out : Path
        Columns: those of `cure.own.stream.COLUMNS`; `model, weights, weights_sha256, pooling`; and `embedding`, a list
        of `dim` float32, null where `error` says why.
    model : str
        Name of an encoder.
    weights : str, optional
        See `find_weights`.
    profile : str
        Whose pre-trained weights.
    pooling : {"mean", "max", "min", "last", "own"}
    how : How, optional

    Raises
    ------
    CureError
        If the weights are not there, or for what `cure.own.stream.run` says.
    """
    if out.suffix != ".parquet":
        raise CureError(f"--out {out}: embeddings go to a .parquet file")
    how = how or How()
    name, source = find_weights(model, weights, profile)
    encoder = models.load(model, source)
    said = {"model": model, "weights": name, "weights_sha256": encoder.weights_sha256(), "pooling": pooling}
    runner = Runner(encoder.to(how.device), pooling, how.batch_size, how.threads, how.device)

    def work(records: list[Record]) -> list[Mapping[str, Any] | str]:
        vectors = runner(records)
        for one in records:
            one.notes += notes(encoder.input_spec, one)
        return [one if isinstance(one, str) else {"embedding": one} for one in vectors]

    columns = {**dict.fromkeys(said, pa.string()), "embedding": pa.list_(pa.float32(), encoder.dim)}
    about = {**said, "batch": how.batch_size, "device": how.device, "input_spec": encoder.input_spec.as_dict()}
    needed = lead_positions(encoder.input_spec)
    job = Job(items, given, needed, work, columns, said, about, out, f"embed {model}", how.workers)
    return run(job, restart=how.restart)


def lead_positions(spec: InputSpec) -> tuple[int, ...]:
    """Positions in `LEADS` of the leads that an encoder reads."""
    return tuple(sorted(LEADS.index(lead) for lead in spec.leads))


def find_weights(model: str, weights: str | None, profile: str) -> tuple[str, str | Path]:
    """Name for the output, and what `cure.models.load` takes.

    Parameters
    ----------
    weights : str or None
        `random`; `hub`, the published ones; a file; or a name below the profile's weights, with or without the
        encoder's: `ssl-simulated`, `leadcnn-ssl-simulated-0`, `leadcnn-ssl-folds-0/split-1`. None is `hub` for a
        published model. For one that is trained here it must be said.

    Raises
    ------
    CureError
        If there are no such weights: lists what there is.
    """
    models.check([model])
    here = trained(model, profile)
    if weights is None and model in TRAINED_HERE:
        raise CureError(f"say the weights of {model} with --weights: {_choices(here, profile)}")
    if weights is None or weights in ("random", HUB):
        return weights or HUB, weights or HUB
    for name in (weights, f"{weights}/all", f"{model}-{weights}", f"{model}-{weights}/all", f"{model}-{weights}-0/all"):
        if name in here:
            return f"{profile}/{name}", here[name]
    if Path(weights).is_file():
        return Path(weights).name, Path(weights)
    raise CureError(f"no weights {weights!r} of {model}: --weights takes {_choices(here, profile)}")


def trained(model: str, profile: str) -> dict[str, Path]:
    """Files of weights that a profile made of an encoder, by their path below its weights without extension."""
    config.load(profile)
    folder = paths.weights(profile)
    files = sorted(folder.glob(f"{model}-*/*.safetensors"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _choices(here: dict[str, Path], profile: str) -> str:
    made = f"those of profile {profile} ({', '.join(here)})" if here else f"what `make repro PROFILE={profile}` makes"
    return f"random, hub (published ones), the path of a file, or {made}"
