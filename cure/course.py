"""The course of a `dvc repro`: which stage of how many, what it does, how long is left, and a summary at the end.

DVC says on its standard output what becomes of each stage; that is read line by line. Its standard error is left alone,
so that a stage sees the terminal and its own bars (records/s, time left) reach it.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cure import config, paths

RUNS, UNCHANGED, RESTORED = "runs", "unchanged", "restored"

_SAYS = (
    (RUNS, re.compile(r"^Running stage '([^']+)':$")),
    (RESTORED, re.compile(r"^Stage '([^']+)' is cached - skipping run, checking out outputs$")),
    (UNCHANGED, re.compile(r"^Stage '([^']+)' didn't change, skipping$")),
)
_NOISE = ("> ", "Updating lock file", "Generating lock file", "Use `dvc push`")
#: What stages without a notebook do.
_OTHERS = {
    "clean": "strips the notebooks, and hashes the code that each runs",
    "render": "publishes tables, figures, notebooks and the site",
}


def said(line: str) -> tuple[str, str] | None:
    """What a line of DVC's output says becomes of a stage.

    Returns
    -------
    (str, str) or None
        `RUNS`, `RESTORED` (from the run cache) or `UNCHANGED`, and the stage's name without its profile; None for any
        other line.
    """
    for what, pattern in _SAYS:
        if found := pattern.match(line.rstrip()):
            return what, found[1].split(":")[-1].split("@")[0]
    return None


def duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Course:
    """What has become of the stages so far.

    Parameters
    ----------
    profile : str
        A profile's name.
    stages : dict
        Stage -> what it does, for all stages of the pipeline.
    usual : dict
        Stage -> wall seconds of an earlier run, as far as there was one.
    clock : callable
        Seconds that only grow.
    """

    profile: str
    stages: dict[str, str]
    usual: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    became: dict[str, str] = field(default_factory=dict, init=False)
    took: dict[str, float] = field(default_factory=dict, init=False)
    _running: tuple[str, float] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    def read(self, line: str) -> str:
        """Take in a line of DVC's output; returns what to print instead, which may be nothing."""
        event = said(line)
        if event is None:
            # DVC repeats each stage's command and names its lock file; errors and prints of stages pass.
            return "" if not line.strip() or line.startswith(_NOISE) else line
        self._finish()
        what, stage = event
        self.became[stage] = what
        place = f"[{len(self.became):>2}/{len(self.stages)}] {stage}"
        if what != RUNS:
            return f"{place}: {'unchanged' if what == UNCHANGED else 'taken from the cache'}\n"
        self._running = (stage, self.clock())
        about = self.stages.get(stage, "")
        return f"{place}: {about}{self._outlook(stage)}\n"

    def _outlook(self, stage: str) -> str:
        """How long this stage took before, and all that may follow."""
        if stage in _OTHERS:  # seconds, and never measured
            return ""
        before = self.usual.get(stage)
        parts = [] if before is None else [f"{duration(before)} when last measured"]
        coming = [name for name in self.stages if name not in self.became and name not in _OTHERS]
        known = [self.usual[name] for name in [stage, *coming] if name in self.usual]
        unknown = 1 + len(coming) - len(known)
        if coming and known and not unknown:
            parts.append(f"at most {duration(sum(known))} left by those times")
        elif coming and known:
            stages = f"{unknown} stage{'s' if unknown > 1 else ''}"
            parts.append(f"at least {duration(sum(known))} left, {stages} not measured")
        return f" ({'; '.join(parts)})" if parts else ""

    def _finish(self) -> None:
        if self._running is not None:
            stage, start = self._running
            self.took[stage] = self.clock() - start
            self._running = None

    def summary(self, status: int = 0) -> str:
        """What ran, what was cached, how long it took, and where to look.

        Parameters
        ----------
        status : int
            Exit status of DVC: the stage that ran last failed where it is not 0.
        """
        failed = self._running[0] if status and self._running is not None else None
        self._finish()
        ran = [f"{name} {duration(seconds)}" for name, seconds in self.took.items() if name != failed]
        lines = [f"cure: profile {self.profile}, {duration(self.clock() - self._start)} in all"]
        rows = [("ran", ran)]
        for what, title in ((RESTORED, "from the cache"), (UNCHANGED, "unchanged")):
            rows.append((title, [name for name, became in self.became.items() if became == what]))
        lines += [f"  {title} ({len(names)}): {', '.join(names)}" for title, names in rows if names]
        if failed is not None:
            lines.append(f"  failed: {failed}, after {duration(self.took[failed])}; the reason is above")
        not_reached = [name for name in self.stages if name not in self.became]
        if not_reached and status:
            lines.append(f"  not reached ({len(not_reached)}): {', '.join(not_reached)}")
        if status:
            lines.append(f"  `make repro PROFILE={self.profile}` goes on from here: what is finished is kept")
        else:
            lines.append(f"  look at: site/{self.profile}/index.html (in a browser; it needs no network)")
            lines.append(f"           tables/{self.profile}/, figures/{self.profile}/, reports/{self.profile}/")
        return "\n".join(lines)


def course(profile: str) -> Course:
    """The course of a profile's pipeline, before it begins."""
    raw = yaml.safe_load((paths.root() / "dvc.yaml").read_text())["stages"]
    about = {name: _OTHERS.get(name) or _title(name) for name in raw}
    usual = {}
    for name in raw:
        file = paths.resources(profile) / f"{name}.json"
        if file.is_file():
            usual[name] = float(json.loads(file.read_text())["wall_s"])
    return Course(profile, about, usual)


def _title(stage: str) -> str:
    """Heading of a stage's notebook, without its number; its name where there is no notebook."""
    file: Path = paths.root() / "notebooks" / f"{config.STAGES.get(stage, '')}_{stage}.ipynb"
    if not file.is_file():
        return stage
    first = "".join(json.loads(file.read_text())["cells"][0]["source"]).splitlines()[0]
    return re.sub(r"^#\s*(\d+\w?\s*·\s*)?", "", first)
