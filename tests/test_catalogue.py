"""The catalogue against the modules it describes, its own rules, and the figure drawn from it."""

import copy
import itertools

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from pydantic import ValidationError

from cure import catalogue as cat
from cure.errors import CureError
from cure.models import checkpoints, registry
from cure.plots.landscape import FAMILIES, OBJECTIVES, SEEN, landscape

RAW = yaml.safe_load((ROOT / "cure/models/catalogue.yaml").read_text())["models"]


@pytest.mark.parametrize("name", registry.PUBLISHED)
def test_what_the_catalogue_says_is_what_is_built(name):
    with torch.device("meta"):
        encoder = registry.PUBLISHED[name]()
    spec, said = encoder.input_spec, cat.entry(name)
    assert said.runnable
    assert sum(p.numel() for p in encoder.parameters()) == said.parameters
    assert (spec.fs, spec.seconds, len(spec.leads), encoder.dim) == (said.fs, said.seconds, said.leads, said.dim)
    assert encoder.license == said.licence_weights
    assert ("non-commercial" in encoder.license) == (said.non_commercial is True)


def test_runnable_models_are_those_of_the_registry():
    assert [name for name, one in cat.catalogue().items() if one.runnable] == list(registry.PUBLISHED)
    assert not set(cat.catalogue()) & set(registry.OWN)


def test_every_runnable_model_has_a_home_or_was_never_published():
    for name, one in cat.catalogue().items():
        assert (one.home is not None) == (one.runnable and not name.startswith("weimann")), name
        assert one.layout is None or one.layout in checkpoints.LAYOUTS


def test_who_saw_ptbxl():
    seen = {name: cat.contamination(name, "ptb-xl") for name in cat.catalogue()}
    assert {name for name, (answer, _) in seen.items() if answer.startswith("signals")} == {
        "ecg-fm",
        "hubert-ecg-small",
        "hubert-ecg-base",
        "hubert-ecg-large",
    }
    assert seen["ecgfounder"] == ("no", "C")
    assert seen["ecg-cpc"] == ("no", "C/P")
    assert cat.contamination("d-beta", "mimic-iv-ecg") == ("unknown", None)
    assert cat.contamination("d-beta", "ptb-xl") == ("no", "C/P")
    assert seen["weimann-jepa-xs"] == ("unknown", None)
    assert cat.contamination("st-mem", "code-15") == ("signals", "I")
    assert cat.contamination("merl-resnet18", "mimic-iv-ecg")[0] == "signals and labels"


def test_pretraining_data_and_contamination_agree():
    """A corpus that is named among the data was seen, and one of a complete list that is not named was not."""
    of = {"ptb-xl": {"PTB-XL"}, "mimic-iv-ecg": {"MIMIC-IV-ECG"}, "code-15": {"CODE", "CODE-15"}}
    of |= {"chapman-ningbo": {"Chapman", "Ningbo"}, "cpsc-georgia": {"CPSC2018", "Georgia"}}
    for (name, one), cohort in itertools.product(cat.catalogue().items(), cat.COHORTS):
        if one.data:
            assert (cat.contamination(name, cohort)[0] != "no") == bool(of[cohort] & set(one.data)), (name, cohort)


def test_what_the_sources_disagree_on_or_say_in_part_is_noted():
    for size in ("small", "base", "large"):
        assert cat.contamination(f"hubert-ecg-{size}", "chapman-ningbo")[0] == "signals"
        assert "partly" in cat.entry(f"hubert-ecg-{size}").notes
    assert "z-score" in cat.entry("ked").notes
    assert cat.entry("merl-vit-tiny").home.file == "vit_tiny_best_encoder.pth"


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(CureError, match=r"'ecg-gpt' is not in the catalogue: choose from ecgfounder, "):
        cat.contamination("ecg-gpt", "ptb-xl")
    with pytest.raises(CureError, match=r"no cohort 'ptbxl': choose from ptb-xl, code-15"):
        cat.contamination("ecg-fm", "ptbxl")


def changed(**change):
    entry = copy.deepcopy(RAW["ked"])
    for path, value in change.items():
        *parents, last = path.split("__")
        target = entry
        for parent in parents:
            target = target[parent]
        target[last] = value
    return entry


def test_the_entry_that_others_are_changed_from_is_valid():
    cat.Entry.model_validate(changed())


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"family": "rnn"},
        {"parameters": None},
        {"evidence": "certain"},
        {"contamination__ptb-xl__seen": False},  # a bare `no` in YAML
        {"contamination__ptb-xl__grade": None},
        {"contamination__ptb-xl": {"seen": "unknown", "grade": "C"}},
        {"contamination": {"ptb-xl": {"seen": "no", "grade": "C"}}},
        {"home__file": "../elsewhere.pt"},
        {"home__record": None},
        {"home__sha256": "abc"},
    ],
    ids=str,
)
def test_entries_that_break_a_rule_are_refused(change):
    with pytest.raises(ValidationError):
        cat.Entry.model_validate(changed(**change))


def test_tables_are_tidy():
    table = cat.catalogue_table()
    assert list(table["model"]) == list(RAW)
    assert table["parameters"].dtype == "Int64"
    row = table.set_index("model").loc["hubert-ecg-base"]
    assert row["data"].startswith("CODE; PTB; ")
    assert row["non_commercial"]
    assert row["ptb_xl"] == "signals"
    assert pd.isna(table.set_index("model").loc["melp", "family"])
    matrix = cat.contamination_table()
    assert len(matrix) == len(RAW) * len(cat.COHORTS)
    assert not matrix.duplicated(["model", "cohort"]).any()
    assert set(matrix["grade"].dropna()) <= set(cat.GRADES)


# --- the figure


@pytest.fixture(scope="module")
def drawn():
    figure = landscape(cat.catalogue_table())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas.get_renderer()


def test_the_landscape_names_every_model_once_and_no_name_overlaps_another(drawn):
    figure, renderer = drawn
    axes = figure.axes[0]
    titles = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in titles) == sorted(one.title for one in cat.catalogue().values())
    boxes = [text.get_window_extent(renderer) for text in titles]
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)
    inside = axes.get_window_extent(renderer)
    for text, box in zip(titles, boxes, strict=True):
        column = int(text.get_position()[0])
        assert box.x1 <= inside.x0 + (column + 1) * inside.width / axes.get_xlim()[1], text.get_text()


def test_the_landscape_shows_size_contamination_and_what_runs(drawn):
    axes = drawn[0].axes[0]
    markers = [one for one in axes.collections if isinstance(one, PathCollection)]
    found = {text.get_text(): marker for text, marker in zip(axes.texts, markers, strict=True)}
    area = {name: marker.get_sizes()[0] for name, marker in found.items()}
    assert area["CLEF small"] < area["CLEF medium"] < area["CLEF large"]
    assert len(found["MTECG"].get_facecolor()) == 0
    assert len(found["KED"].get_facecolor()) == 1
    colours = {name: tuple(marker.get_edgecolor()[0]) for name, marker in found.items()}
    assert colours["ECG-FM"] == colours["HuBERT-ECG base"] != colours["KED"] == colours["ST-MEM"]


def test_the_landscape_has_words_for_every_value_that_an_entry_may_have():
    fields = cat.Entry.model_json_schema()["properties"]
    for name, known in {"family": FAMILIES, "objective": OBJECTIVES}.items():
        assert set(fields[name]["anyOf"][0]["enum"]) == set(known) - {"unknown"}
    assert set(cat.Contamination.model_json_schema()["properties"]["seen"]["enum"]) == set(SEEN)
