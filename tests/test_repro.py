"""What `cure repro` says while DVC runs: the stage it is at, what is left, and what became of all of them."""

import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from cure import config, course, repro
from cure.course import RESTORED, RUNS, UNCHANGED, Course, said
from cure.errors import CureError
from cure.models import weights

OUTPUT = """\
Running stage 'clean':
> python -m cure.cli clean
Updating lock file 'dvc.lock'

Stage 'download@demo' didn't change, skipping
Stage 'prepare@demo' is cached - skipping run, checking out outputs
Running stage 'heads@demo':
> python -m cure.cli run heads --profile demo
notebooks/05_heads.ipynb was edited
Updating lock file 'dvc.lock'

Use `dvc push` to send your updates to remote storage.
"""


@pytest.fixture
def clock():
    """Each look at it is ten seconds later."""
    times = iter(range(0, 10_000, 10))
    return lambda: next(times)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("Running stage 'clean':\n", (RUNS, "clean")),
        ("Running stage 'heads@ptbxl-subset':", (RUNS, "heads")),
        ("Running stage 'dvc.yaml:heads@demo':", (RUNS, "heads")),
        ("Stage 'heads@demo' didn't change, skipping", (UNCHANGED, "heads")),
        ("Stage 'heads@demo' is cached - skipping run, checking out outputs", (RESTORED, "heads")),
        ("> python -m cure.cli run heads --profile demo", None),
        ("a cell printed: Running stage 'heads'", None),
        ("ERROR: failed to reproduce 'heads@demo'", None),
    ],
)
def test_lines_of_dvc_are_understood(line, event):
    assert said(line) == event


def test_dvc_still_says_what_is_read_here():
    """The three phrases stand in the installed DVC."""
    dvc = pytest.importorskip("dvc", reason="DVC is not installed")
    folder = os.path.dirname(dvc.__file__)  # noqa: PTH120
    phrases = {
        "stage/run.py": "Running stage '%s':",
        "stage/cache.py": "Stage '%s' is cached - skipping run, checking out outputs",
        "stage/__init__.py": "Stage '%s' didn't change, skipping",
    }
    for file, phrase in phrases.items():
        with open(f"{folder}/{file}") as text:  # noqa: PTH123
            assert phrase in text.read()
        assert said(phrase.replace("%s", "embed@demo")) is not None


def test_each_stage_says_which_it_is_of_how_many_and_what_is_left(clock):
    stages = {"clean": "strips", "download": "gets", "prepare": "packs", "heads": "fits", "report": "tells"}
    followed = Course("demo", stages, usual={"heads": 90.0, "report": 300.0}, clock=clock)
    lines = [followed.read(line) for line in OUTPUT.splitlines(keepends=True)]
    assert [line for line in lines if line] == [
        "[ 1/5] clean: strips\n",
        "[ 2/5] download: unchanged\n",
        "[ 3/5] prepare: taken from the cache\n",
        "[ 4/5] heads: fits (90 s when last measured; at most 6 min left by those times)\n",
        "notebooks/05_heads.ipynb was edited\n",
    ]
    assert followed.summary() == (
        "cure: profile demo, 50 s in all\n"
        "  ran (2): clean 10 s, heads 10 s\n"
        "  from the cache (1): prepare\n"
        "  unchanged (1): download\n"
        "  look at: site/demo/index.html (in a browser; it needs no network)\n"
        "           tables/demo/, figures/demo/, reports/demo/"
    )


def test_no_time_is_promised_where_a_stage_was_never_measured(clock):
    followed = Course("demo", {"heads": "fits", "report": "tells"}, usual={"heads": 90.0}, clock=clock)
    assert followed.read("Running stage 'heads@demo':\n") == (
        "[ 1/2] heads: fits (90 s when last measured; at least 90 s left, 1 stage not measured)\n"
    )
    assert followed.read("Running stage 'report@demo':\n") == "[ 2/2] report: tells\n"


def test_what_is_left_counts_what_was_measured_and_says_of_how_many_it_was_not(clock):
    stages = {"download": "gets", "heads": "fits", "leads": "cuts", "report": "tells", "render": "shows"}
    followed = Course("demo", stages, usual={"heads": 90.0, "report": 300.0}, clock=clock)
    assert [followed.read(f"Running stage '{name}@demo':\n") for name in ("download", "heads", "leads", "report")] == [
        "[ 1/5] download: gets (at least 6 min left, 2 stages not measured)\n",
        "[ 2/5] heads: fits (90 s when last measured; at least 6 min left, 1 stage not measured)\n",
        "[ 3/5] leads: cuts (at least 5 min left, 1 stage not measured)\n",
        "[ 4/5] report: tells (5 min when last measured)\n",
    ]


def test_a_failed_run_says_where_it_stopped_and_that_it_goes_on(clock):
    followed = Course("demo", {"clean": "strips", "heads": "fits", "report": "tells"}, clock=clock)
    for line in ("Running stage 'clean':\n", "Running stage 'heads@demo':\n"):
        followed.read(line)
    summary = followed.summary(255)
    assert "  ran (1): clean 10 s\n" in summary
    assert "  failed: heads, after 10 s; the reason is above\n" in summary
    assert "  not reached (1): report\n" in summary
    assert "`make repro PROFILE=demo` goes on from here" in summary
    assert "index.html" not in summary


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (119, "119 s"), (150, "2 min"), (8000, "2 h 13 min")])
def test_durations_are_said_as_people_do(seconds, text):
    assert course.duration(seconds) == text


def test_the_course_of_a_profile_knows_every_stage_and_its_times(project):
    folder = project / "results/resources/tiny"
    folder.mkdir(parents=True)
    (folder / "heads.json").write_text('{"stage": "heads", "wall_s": 12.5}')
    followed = course.course("tiny")
    assert {"clean", "render", "download", "report"} <= set(followed.stages)
    assert followed.stages["heads"].startswith("Heads: light classifiers")
    assert followed.usual == {"heads": 12.5}
    assert set(followed.stages) - {"clean", "render"} <= set(config.STAGES)


def test_weights_that_are_missing_are_named_before_hours_of_work(project, monkeypatch):
    shutil.copy(ROOT / "profiles/ptbxl.yaml", project / "profiles/ptbxl.yaml")
    monkeypatch.setattr(repro, "follow", lambda *_: pytest.fail("the run was started"))
    with pytest.raises(CureError, match=r"by hand from \S+ and put it at data/weights/published/ecg-jepa/") as told:
        repro.repro("ptbxl")
    for name in config.load("ptbxl").embed["published"]:
        assert f"`cure weights fetch {name}`" in str(told.value)
    monkeypatch.setattr(weights, "verify", lambda name: weights.place(name))
    monkeypatch.setattr(repro, "follow", lambda *_: 0)
    repro.repro("ptbxl")


FAKE = f"""#!{sys.executable}
import os, sys
print("Running stage 'heads@tiny':")
print("terminal" if os.isatty(2) and not os.isatty(1) else "no terminal")
print("heads: 100%| 7/7 [00:01, 70.0record/s]", file=sys.stderr, flush=True)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 3])
def test_bars_of_stages_reach_the_terminal(tmp_path, status):
    fake = tmp_path / "dvc"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    code = (
        "import os, sys; from cure import repro, course\n"
        "followed = course.Course('tiny', {'heads': 'fits'})\n"
        f"status = repro.follow([{str(fake)!r}, '{status}'], followed, dict(os.environ))\n"
        "print(followed.summary(status)); sys.exit(status)"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=False,
    )
    os.close(theirs)
    bar = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == status
    assert "70.0record/s" in bar
    assert done.stdout.startswith("[ 1/1] heads: fits\nterminal\n")
    assert re.search("failed: heads" if status else "ran \\(1\\): heads", done.stdout)


TOY = """
stages:
  clean: {cmd: touch clean, outs: [clean]}
  heads: {cmd: cp clean heads, deps: [clean], outs: [heads]}
"""


def test_a_real_dvc_is_followed_from_the_first_run_to_the_one_with_nothing_to_do(tmp_path, monkeypatch, capfd):
    pytest.importorskip("dvc", reason="DVC is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(TOY)
    (tmp_path / "profiles").mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)

    def became():
        followed = Course("toy", {"clean": "makes", "heads": "fits"})
        assert repro.follow([*dvc, "repro"], followed, dict(os.environ)) == 0
        return followed.became

    assert became() == {"clean": RUNS, "heads": RUNS}
    said = capfd.readouterr().out
    assert "[ 1/2] clean: makes\n[ 2/2] heads: fits\n" in said
    assert "> touch" not in said
    assert became() == {"clean": UNCHANGED, "heads": UNCHANGED}
    (tmp_path / "heads").unlink()
    (tmp_path / "dvc.lock").unlink()
    assert became() == {"clean": RUNS, "heads": RESTORED}, "the run cache keeps no stage without dependencies"
    assert (tmp_path / "heads").is_file()


def test_following_a_command_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        repro.follow([str(tmp_path / "nope")], Course("tiny", {}), dict(os.environ))
