"""What this machine is, what is here already, and which profiles can run on it in what time; a few seconds."""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from cure import config, integrity, paths, resources

#: Speed of float32 matrix products where the recorded stage times were measured: two idle cores (benchmarks/README.md).
REFERENCE_GFLOPS = 190.0
#: Below these a run is likely to stop half-way.
_FREE_GIB, _MEMORY_GIB = 4.0, 4.0
#: Sides of the probe's matrices, and seconds that it may take.
_SIDE, _PROBE_SECONDS = 1024, 0.6
#: File that says that a local copy of a source is there, and the source's name.
_SOURCES = {
    "ptbxl": ("ptbxl_database.csv", "PTB-XL 1.0.3"),
    "code15": ("exams.csv", "CODE-15 %"),
    "wfdb": ("*.hea", "records"),
}
#: About how many GiB a whole source takes: what is downloaded and stays, and what is packed from it. CODE-15 % is
#: streamed into the packed store (34, see `cure.cohorts.code15`) with one part unpacked at a time (4).
_GIB = {"ptbxl": (3.0, 3.0), "code15": (46.0, 38.0)}
_CODE15_PARTS, _PTBXL_IDS = 18, 21_837


@dataclass(frozen=True)
class Machine:
    """What a run depends on of the machine.

    Attributes
    ----------
    about : dict
        As `cure.resources.machine` gives it: cpu, cores, memory_gib, system, python.
    usable : int
        Cores that this process may use.
    free_gib : float
        Free disk space where the project lies.
    available_gib : float
        Memory that is free now.
    accelerator : str
        What torch can compute on beside the processor; empty where there is nothing.
    gflops : float
        Float32 matrix products, 1e9 operations per second, on all usable cores if nothing else ran: measured just now
        in processor time.
    load : float
        Processes that want a core, on average over a minute.
    """

    about: dict[str, str | int]
    usable: int
    free_gib: float
    available_gib: float
    accelerator: str
    gflops: float
    load: float = 0.0

    @property
    def slower(self) -> float:
        """How many times longer than where the times were recorded; a rough guide, since not all work is products."""
        return REFERENCE_GFLOPS / self.gflops


class Verdict(NamedTuple):
    """Whether a profile can run here, how long it should take, where that time comes from, and what is missing.

    `whole` is False where some stages have no recorded time: then it takes longer than `minutes`.
    """

    profile: str
    status: str
    minutes: float | None
    basis: str
    missing: list[str]
    whole: bool = True


def here() -> Machine:
    """Look at this machine, and measure its speed for about half a second."""
    root = paths.root()
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(
        about=resources.machine(),
        usable=usable,
        free_gib=shutil.disk_usage(root).free / 2**30,
        available_gib=psutil.virtual_memory().available / 2**30,
        accelerator=_accelerator(),
        gflops=_probe() * usable,
        load=psutil.getloadavg()[0],
    )


def _accelerator() -> str:
    try:
        import torch
    except ImportError:
        return ""
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        return f"{torch.cuda.device_count()} x {one.name}, {one.total_memory / 2**30:.0f} GiB"
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else ""


def _probe() -> float:
    """GFLOP/s of one core: best of as many products as fit. Processor time does not count what else runs here."""
    a = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    a @ a  # the first call starts the threads
    best, stop = np.inf, time.perf_counter() + _PROBE_SECONDS
    while True:
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
        if time.perf_counter() > stop:
            return 2 * _SIDE**3 / best / 1e9


# --- profiles ---------------------------------------------------------------------------------------------------------


def verdict(profile: str, machine: Machine, environment: Mapping[str, str], root: Path, weights: list[str]) -> Verdict:
    """Whether one profile can run here.

    Parameters
    ----------
    profile : str
    machine : Machine
    environment : mapping of str to str
        Variables that name local copies of data.
    root : Path
        The project.
    weights : list of str
        Published models whose weights are here.
    """
    study = config.load(profile)
    stops: list[str] = []
    notes: list[str] = []
    cohorts = [(study.cohort, study.download), *([(study.external, study.external.download)] if study.external else [])]
    disk, parts = _FREE_GIB, [f"{_FREE_GIB:.0f} to work with"]
    for cohort, settings in cohorts:
        said, stop = _data(cohort.source, settings, environment, root)
        packs = not (root / "data" / "cohorts" / profile / cohort.name / "cohort.json").is_file()
        for gib, what in _disk(cohort.source, settings, fetches=bool(said) and not stop, packs=packs):
            disk += gib
            parts.append(f"{gib:.1f} for {what}")
        (stops if stop else notes).extend(said)
    if study.embed.get("weights") == "hub" and (
        lost := [n for n in study.embed.get("published", []) if n not in weights]
    ):
        notes.append(f"weights of {integrity.some(lost)}: `cure weights list`, `cure weights fetch MODEL`")
    if str(study.embed.get("device", "cpu")) != "cpu" and not machine.accelerator:
        stops.append(f"device {study.embed['device']} (section embed): none here; set `device: cpu` and expect days")
    recorded, peak, source, whole = _recorded(profile, root)
    need = max(_MEMORY_GIB, (peak or 0) * 1.5)
    if float(machine.about["memory_gib"]) < need:
        stops.append(f"{need:.0f} GiB of memory (here {machine.about['memory_gib']})")
    if machine.free_gib < disk:
        why = f": {', '.join(parts)}" if len(parts) > 1 else ""
        stops.append(f"{disk:.0f} GiB of disk (free {machine.free_gib:.1f}){why}")
    minutes = None if recorded is None else recorded * machine.slower
    status = "cannot run" if stops else "can run, once it has fetched" if notes else "can run"
    return Verdict(profile, status, minutes, source, stops + notes, whole)


def _disk(source: str, settings: dict, *, fetches: bool, packs: bool) -> list[tuple[float, str]]:
    """GiB that a cohort still takes and what for: files that are to be fetched, and the store packed from them."""
    if source not in _GIB:
        return []  # simulated ones are small, and what one's own records take is not known
    download, store = _GIB[source]
    share = len(settings.get("parts") or range(_CODE15_PARTS)) / _CODE15_PARTS if source == "code15" else 1.0
    if source == "ptbxl" and settings.get("max_id_100") is not None:
        share = min(1.0, settings["max_id_100"] / _PTBXL_IDS)
    title = _SOURCES[source][1]
    found = [(share * download, f"{title} as downloaded")] if fetches else []
    return found + ([(share * store, f"{title} as packed")] if packs else [])


def _data(source: str, settings: dict, environment: Mapping[str, str], root: Path) -> tuple[list[str], bool]:
    """What is missing of a cohort's raw records, and whether nothing can fetch it."""
    if source in paths.GENERATED:
        return [], False
    marker, title = _SOURCES[source]
    variable = paths.RAW_VARIABLES[source]
    named = environment.get(variable)
    folder = Path(named).expanduser() if named else root / "data" / "raw" / source
    if any(folder.glob(marker)):
        return [], False
    if named:
        return [f"{title}: {variable} names a folder without {marker}"], True
    if source == "wfdb":
        return [f"records of your own: set {variable} (docs/own-cohort.md)"], True
    if settings.get("fetch") is False:
        return [f"{title}: set {variable}, section download does not fetch"], True
    return [f"{title} (or set {variable} to a local copy)"], False


def _recorded(profile: str, root: Path) -> tuple[float | None, float | None, str, bool]:
    """Minutes of the stages, GiB of the largest process, where that was read, and whether it is of all stages."""
    rows = []
    for stage in config.STAGES:
        file = root / "results" / "resources" / profile / f"{stage}.json"
        if file.is_file():
            rows.append(json.loads(file.read_text()))
    if rows:
        minutes = sum(row["wall_s"] for row in rows) / 60
        cores = rows[0]["machine"]["cores"]
        whole = len(rows) == len(config.STAGES)
        basis = f"{minutes:.0f} min recorded on {cores} cores"
        basis += "" if whole else f", measured for {len(rows)} of {len(config.STAGES)} stages"
        return minutes, max(row["peak_rss_mb"] for row in rows) / 1074, basis, whole
    readme = root / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    row = re.search(rf"^\| `{re.escape(profile)}` \|.*\| ([^|]*) \|$", text, re.M)
    if not row:
        return None, None, "no time recorded", True
    found = re.search(r"([\d.]+) minutes", row[1])
    return (float(found[1]) if found else None), None, f"README: {row[1].strip()}", True


# --- the report -------------------------------------------------------------------------------------------------------


def report() -> str:
    """Everything as text for a terminal."""
    from cure.models import weights

    machine, root = here(), paths.root()
    published = weights.present()
    status, pins = integrity.pins()
    verdicts = [verdict(name, machine, os.environ, root, published) for name in config.profiles()]
    return text(machine, verdicts, f"{status}: {pins}", _present(root, published))


def text(machine: Machine, verdicts: list[Verdict], versions: str, present: list[str]) -> str:
    """The report from its parts."""
    about, busy = machine.about, machine.load > 0.5 * machine.usable
    lines = [
        f"system       {about['system']}, Python {about['python']}",
        f"processor    {about['cpu']}, {about['cores']} cores, {machine.usable} usable here",
        f"memory       {about['memory_gib']} GiB, {machine.available_gib:.1f} free now",
        f"disk         {machine.free_gib:.1f} GiB free",
        f"accelerator  {machine.accelerator or 'none that torch can use'}",
        f"speed        {machine.gflops:.0f} GFLOP/s in float32 matrix products (where times were recorded: "
        f"{REFERENCE_GFLOPS:.0f}), load {machine.load:.1f}{': other work will slow a run' if busy else ''}",
        f"versions     {versions}",
        *(f"{'here' if i == 0 else '':<12} {line}" for i, line in enumerate(present or ["no data, no weights yet"])),
        "",
    ]
    for one in verdicts:
        word = "about" if one.whole else "at least"
        time_here = "" if one.minutes is None else f", {word} {max(one.minutes, 1):.0f} min here"
        lines.append(f"{one.profile:<13} {one.status}{time_here} ({one.basis})")
        lines += [f"{'':<13}   - {item}" for item in one.missing]
    lines += ["", "Times here are the recorded ones times the ratio of speeds: a guide, good to a factor of two."]
    return "\n".join(lines)


def _present(root: Path, published: list[str]) -> list[str]:
    """Data and weights that are here, a line each."""
    lines = []
    for source, variable in paths.RAW_VARIABLES.items():
        if named := os.environ.get(variable):
            lines.append(f"{variable} = {named}{'' if Path(named).is_dir() else ' (no such folder)'}")
        elif (root / "data" / "raw" / source).is_dir():
            lines.append(f"raw records of {source} in data/raw/{source}")
    for kind in ("cohorts", "weights", "embeddings", "stages"):
        folder = root / "data" / kind
        names = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
        if names:
            lines.append(f"data/{kind}: {', '.join(names)}")
    if published:
        lines.append(f"published weights: {', '.join(published)}")
    return lines
