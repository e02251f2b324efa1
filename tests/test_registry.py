"""Published weights in encoders: strict loading, what a wrong file is told, and the commands around them."""

import json
import re

import pytest
import torch
from hub import CHECKPOINT, Settings, hub_fixture, project_fixture, put, saved, state, to_bytes  # noqa: F401
from safetensors.torch import save_file
from torch import nn

from cure import cli, models
from cure.catalogue import catalogue
from cure.errors import CureError
from cure.models import registry, weights


def published(**content):
    """A published file with a prefix and the older names of weight norm."""
    older = {"conv.parametrizations.weight.original0": "conv.weight_g"}
    older |= {"conv.parametrizations.weight.original1": "conv.weight_v"}
    return saved({"state_dict": {f"backbone.{older.get(k, k)}": v for k, v in {**state(), **content}.items()}})


def test_published_weights_arrive_in_the_encoder(hub):
    weights.fetch("ecgfounder")
    encoder = models.load("ecgfounder", "hub", seed=3)
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in state().items())
    assert encoder.pretraining == ("HEEDB",)
    assert not encoder.training


@pytest.mark.parametrize("kind", ["Path", "str"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_published_file_elsewhere_may_be_given_by_its_path(project, kind, suffix):
    file = project / f"mine.{suffix}"
    renamed = {f"backbone.{name}": value for name, value in state().items()}
    save_file(renamed, file) if suffix == "safetensors" else file.write_bytes(published())
    encoder = models.load("ecgfounder", str(file) if kind == "str" else file)
    assert torch.equal(encoder.norm.weight, state()["norm.weight"])
    assert encoder.weights_sha256() == models.load("ecgfounder", file, seed=9).weights_sha256()
    assert encoder.pretraining == ("unknown",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (published(extra=torch.ones(1)), "entry 'extra' is not of this architecture"),
        (published(**{"norm.bias": torch.ones(5)}), r"entry 'norm.bias' has shape \(5,\), not \(4,\)"),
        (saved({"state_dict": {k: v for k, v in state().items() if k != "norm.bias"}}), "entry 'norm.bias' is missing"),
        (saved({"state_dict": nn.Linear(9, 4).state_dict()}), "entry 'bias' is not of this architecture"),
    ],
    ids=["unexpected", "shape", "missing", "another model"],
)
def test_strict_loading_names_the_first_entry_that_does_not_fit(project, content, said):
    file = project / "a.pth"
    file.write_bytes(content)
    with pytest.raises(CureError, match=f"a.pth does not fit encoder 'ecgfounder': {said}"):
        models.load("ecgfounder", file)


def test_a_published_architecture_that_was_trained_here_says_what_it_has_seen(project):
    file = project / "all.safetensors"
    save_file(state(), file, metadata={"about": json.dumps({"pretraining": "folds 1-8 of PTB-XL"})})
    assert models.load("ecgfounder", file).pretraining == ("folds 1-8 of PTB-XL",)


def test_a_path_without_a_file_says_how_to_get_one(project):
    with pytest.raises(
        CureError, match=r"no weights a/b.pt: no such file. `cure weights fetch ked` gets the published"
    ):
        models.load("ked", "a/b.pt")
    with pytest.raises(CureError, match=r"no weights a/b.pt: .*Get the published file by hand from https://drive"):
        models.load("st-mem", "a/b.pt")
    with pytest.raises(CureError, match=r"no such file. There are no published weights of weimann-jepa-xs: train it"):
        models.load("weimann-jepa-xs", "a/b.pt")
    with pytest.raises(CureError, match=r"no weights a/b.pt: make them with `make repro"):
        models.load("leadcnn", "a/b.pt")


@pytest.mark.parametrize("name", ["ked", "leadcnn", "weimann-jepa-xs"])
def test_weights_are_random_hub_or_a_file(project, name):
    for wrong in (None, 3):
        with pytest.raises(CureError, match=f"no weights {wrong}: say 'random', 'hub' or the path of a file"):
            models.load(name, wrong)
    for wrong in ("hubb", "Random", ""):
        with pytest.raises(CureError, match=r"no weights .*Weights are 'random', 'hub' or a file"):
            models.load(name, wrong)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ked", "`cure weights fetch ked` gets the published file from https://zenodo.org/records/14881564"),
        ("st-mem", "by hand from https://drive.google.com/.* and put it at data/weights/published/st-mem/st-mem.pth"),
        ("weimann-jepa-xs", "There are no published weights of weimann-jepa-xs: train it"),
        ("leadcnn", "`make repro PROFILE=...`"),
    ],
)
def test_a_wrong_file_says_where_a_right_one_is(project, name, remedy):
    wrong = {
        "other.pth": (saved(nn.Linear(2, 2).state_dict()), "does not fit encoder"),
        "cut.pth": (CHECKPOINT[:-200], "is damaged or no file of weights"),
        "cut.safetensors": (to_bytes(state())[:-4], "is damaged or no file of weights"),
        "empty.pth": (saved({"epoch": 1}), "holds no state dict"),
    }
    for file, (content, said) in wrong.items():
        (project / file).write_bytes(content)
        with pytest.raises(CureError, match=f"{file} {said}.*{remedy}"):
            models.load(name, file)


@pytest.mark.parametrize("kind", ["dict", "bare", "safetensors"])
def test_huberts_files_are_flat_or_a_dict(project, kind):
    file = project / ("a.safetensors" if kind == "safetensors" else "a.pt")
    content = {"model_state_dict": state(), "optimizer_state_dict": {"lr": 0.1}} if kind == "dict" else state()
    file.write_bytes(to_bytes(state()) if kind == "safetensors" else saved(content))
    for name in ("hubert-ecg-small", "hubert-ecg-base", "hubert-ecg-large"):
        assert catalogue()[name].layout == "model_state_dict"
    assert torch.equal(models.load("hubert-ecg-small", file).norm.weight, state()["norm.weight"])


def test_a_real_encoder_loads_from_the_published_layout(project):
    """CLEF small as Lightning would have saved it, with the prefix that its authors document."""
    trained = models.load("clef-small", seed=4)
    content = {"state_dict": {f"backbone.{k}": v for k, v in trained.state_dict().items()}, "epoch": 1}
    put("clef-small", saved(content))
    weights.fetch("clef-small")
    loaded = models.load("clef-small", "hub")
    assert loaded.weights_sha256() == trained.weights_sha256() != models.load("clef-small").weights_sha256()
    assert loaded.pretraining == ("MIMIC-IV-ECG",)
    assert loaded.license == catalogue()["clef-small"].licence_weights


# --- the command line


def run(capsys, *arguments):
    status = cli.main(["weights", *arguments])
    return status, *capsys.readouterr()


def test_the_commands(hub, project, capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["model", *registry.PUBLISHED]
    assert re.search(r"^ecgfounder +not stated .*huggingface PKUDigitalHealth/ECGFounder +no +no$", out, re.M)
    assert re.search(r"^st-mem +CC BY-NC 4.0 \(non-commercial\) +by hand: drive.google.com +no +no$", out, re.M)

    assert "No published weights are here" in run(capsys, "verify")[1]
    status, out, _ = run(capsys, "fetch", "ecgfounder")
    assert status == 0
    assert "convert" not in out
    assert re.search(r"^ecgfounder .* yes +yes$", run(capsys, "list")[1], re.M)
    assert "ecgfounder/12_lead_ECGFounder.pth: the one in weights.lock.yaml" in run(capsys, "verify")[1]

    hub.files["mimic_iv_ecg_physionet_pretrained.pt"] = saved({"model": state(), "cfg": Settings(a=1)})
    out = run(capsys, "fetch", "ecg-fm")[1]
    command = re.search(r"`cure weights (convert .*)`", out)[1].split()
    assert run(capsys, *command)[0] == 0
    assert run(capsys, "verify", "ecg-fm")[0] == 0

    weights.place("ecgfounder").write_bytes(b"x")
    status, _, errors = run(capsys, "verify")
    assert status == 1
    assert errors.startswith("cure: data/weights/published/ecgfounder/12_lead_ECGFounder.pth is truncated")
    assert run(capsys, "fetch", "xecg")[0] == 1
    assert run(capsys, "convert", "nothing.pt")[0] == 1
    assert run(capsys, "convert", str(weights.place("ecgfounder")), "--out", "x.safetensors")[0] == 1
