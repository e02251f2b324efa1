"""The last, cheap stage: publish what the stages made, and turn it into the pages that a reviewer opens.

Writes `tables/`, `figures/`, `reports/`, `results/predictions/` and `site/` of one profile, each whole or not at all.
"""

import shutil
from pathlib import Path

from cure import config, findings, paths, resources
from cure.errors import CureError
from cure.site.pages import Site


def render(profile: str) -> list[str]:
    """Publish one profile.

    Returns
    -------
    list of str
        Stages that have not run: the pages say so, with the command that runs them.

    Raises
    ------
    CureError
        If no stage has run, or two stages write one file.
    """
    root = paths.root()
    ran = [stage for stage in config.STAGES if (paths.stage(profile, stage) / "notebook.ipynb").is_file()]
    if not ran:
        raise CureError(f"no stage of profile {profile} has run: `make repro PROFILE={profile}`")
    for kind in ("tables", "figures"):
        _publish(profile, ran, kind, root / kind / profile)
    _publish(profile, ran, "predictions", root / "results" / "predictions" / profile)
    with paths.atomic(root / "reports" / profile) as out:
        out.mkdir(parents=True)
        for stage in ran:
            shutil.copyfile(
                paths.stage(profile, stage) / "notebook.ipynb", out / f"{findings.notebook_name(stage)}.ipynb"
            )
    cost = resources.table(paths.resources(profile), list(config.STAGES))
    with paths.atomic(root / "tables" / profile / "resources.csv") as part:
        cost.to_csv(part, index=False, lineterminator="\n")
    with paths.atomic(root / "site" / profile) as out:
        out.mkdir(parents=True)
        site = Site(profile, out, ran, cost)
        site.write()
    return site.missing


def _publish(profile: str, stages: list[str], kind: str, target: Path) -> None:
    """Copy one kind of output of all stages into one folder; two stages must not claim one name."""
    with paths.atomic(target) as out:
        out.mkdir(parents=True)
        for stage in stages:
            for file in sorted((paths.stage(profile, stage) / kind).glob("*")):
                if (out / file.name).exists():
                    raise CureError(f"two stages write {kind}/{file.name}, one of them is {stage}: rename one")
                shutil.copyfile(file, out / file.name)
