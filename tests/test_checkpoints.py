"""Reading checkpoints: every layout in which weights are published, damage, and files made to run code."""

import hashlib
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from hub import CHECKPOINT, Settings, Small, saved, state
from safetensors.torch import load_file, save_file

from cure import models
from cure.errors import CureError
from cure.models import checkpoints


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project as working directory."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- reading


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": state(), "epoch": 1, "optimizer": {"lr": 0.1, "state": {0: torch.ones(2)}}},
        {"state_dict": state(), "val_auroc": np.float64(0.9)},
        state(),
    ],
    ids=["outer dict", "numpy number", "bare"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_read_state_takes_outer_dicts_and_bare_ones(project, content, zipped):
    file = project / "a.pth"
    file.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    found = checkpoints.read_state(file, "state_dict")
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], value) for name, value in state().items())


def test_read_state_refuses_what_is_no_state_dict(project):
    file = project / "a.pt"
    for content in ({"model": {"depth": 3}}, {"epoch": 1}, [torch.ones(2)], {}):
        file.write_bytes(saved(content))
        with pytest.raises(CureError, match=r"a\.pt holds no state dict, under 'model' or bare"):
            checkpoints.read_state(file, "model")


@pytest.mark.parametrize("kept", [0, 1e-4, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files_are_errors(project, kept, suffix):
    file = project / f"a.{suffix}"
    save_file(state(), file) if suffix == "safetensors" else file.write_bytes(CHECKPOINT)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(CureError, match=rf"a\.{suffix} is damaged or no file of weights"):
        checkpoints.read_state(file, "state_dict")
    if suffix == "pt":
        with pytest.raises(CureError, match="damaged"):
            checkpoints.convert(file, project / "out.safetensors")
    assert not (project / "out.safetensors").exists()


def test_weight_norm_is_named_as_the_module_names_it():
    newer = state()
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    older = {f"conv.{names.get(name.removeprefix('conv.'))}": v for name, v in newer.items() if "original" in name}
    assert older.keys() == {"conv.weight_g", "conv.weight_v"}
    older |= {name: value for name, value in newer.items() if "original" not in name}
    assert checkpoints.with_names_of(newer, newer).keys() == newer.keys()
    assert checkpoints.with_names_of(newer, older).keys() == older.keys()
    x, outputs = torch.randn(2, 12, 80), []
    for form in (newer, older):
        module = Small().eval()
        module.load_state_dict(checkpoints.with_names_of(form, module.state_dict()))
        outputs.append(module(x))
    assert torch.equal(*outputs)


# --- converting


def awkward():
    """A checkpoint with objects, shared tensors and views beside plain values."""
    shared, content = torch.arange(6.0).reshape(2, 3), state()
    weights_ = {**content, "convs.0": shared, "convpath.0": shared, "view": torch.ones(1).expand(4), "t": shared.T}
    extra = {"cfg": Settings(lr=0.1, nested=Settings(a=[1, 2])), "mean": np.arange(3.0), "where": Settings}
    return {"args": None, "model": weights_, **extra}, weights_


def test_convert_takes_the_tensors_and_names_its_source(project):
    content, wanted = awkward()
    file, out = project / "a.pt", project / "a.safetensors"
    file.write_bytes(saved(content))
    with pytest.raises(CureError, match=r"holds objects besides tensors \(.*Settings.*`cure weights convert a.pt`"):
        checkpoints.read_state(file, "model")
    checkpoints.convert(file, out)
    found = checkpoints.read_state(out, "model")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    said = {"source": "a.pt", "source_sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "layout": "model"}
    assert checkpoints.about(out) == said
    first = out.read_bytes()
    checkpoints.convert(file, out)
    assert out.read_bytes() == first


def test_convert_reads_real_omegaconf_settings_and_a_lightning_file(project):
    omegaconf = pytest.importorskip("omegaconf")
    settings = omegaconf.OmegaConf.create({"model": {"depth": 4, "kernel": [3, 1], "rate": "${model.depth}"}})
    file = project / "last.ckpt"
    file.write_bytes(saved({"hyper_parameters": settings, "state_dict": state(), "epoch": 2}))
    assert "omegaconf.dictconfig.DictConfig" in checkpoints.foreign(file)
    checkpoints.convert(file, project / "out.safetensors")
    assert load_file(project / "out.safetensors").keys() == state().keys()


def test_convert_prefers_the_encoder_to_the_whole(project):
    other = {"text.weight": torch.ones(2)}
    (project / "a.pt").write_bytes(saved({"model": other, "ecg_model": state(), "text_encoder": other}))
    checkpoints.convert(project / "a.pt", project / "out.safetensors")
    assert load_file(project / "out.safetensors").keys() == state().keys()


def test_an_older_file_with_objects_is_not_called_damaged(project):
    file, out = project / "a.pt", project / "out.safetensors"
    whole = saved({"model": state(), "cfg": Settings(a=1)}, _use_new_zipfile_serialization=False)
    file.write_bytes(whole)
    for act in (lambda: checkpoints.convert(file, out), lambda: checkpoints.read_state(file, "model")):
        with pytest.raises(
            CureError, match=r"a\.pt is of a torch before 1\.6 and holds objects.*`torch\.save`"
        ) as error:
            act()
        assert "damaged" not in str(error.value)
    file.write_bytes(saved({"model": state()}, _use_new_zipfile_serialization=False)[:-500])
    with pytest.raises(CureError, match="is damaged"):
        checkpoints.convert(file, out)
    assert not out.exists()


# --- hostile files


class Attack:
    """Runs `call` when unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


class StatefulAttack:
    """Runs a shell command from the state that is set on another object."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return Settings, (), {"x": Attack(os.system, self.command)}


ATTACKS = {
    "os.system": lambda mark: Attack(os.system, f"touch {mark}"),
    "eval": lambda mark: Attack(eval, f"open({str(mark)!r}, 'w').close()"),
    "exec": lambda mark: Attack(exec, f"open({str(mark)!r}, 'w').close()"),
    "open": lambda mark: Attack(open, str(mark), "w"),
    "subprocess": lambda mark: Attack(subprocess.check_call, ["touch", str(mark)]),
    "nested pickle": lambda mark: Attack(pickle.loads, pickle.dumps(Attack(os.system, f"touch {mark}"))),
    "state": lambda mark: StatefulAttack(f"touch {mark}"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("within", ["beside", "state dict", "alone"])
def test_no_code_in_a_file_ever_runs(project, attack, zipped, within):
    mark, file, out = project / "ran", project / "a.pt", project / "out.safetensors"
    bomb = ATTACKS[attack](mark)
    content = {"beside": {"a": bomb, "model": state()}, "state dict": {"model": {**state(), "a": bomb}}, "alone": bomb}
    file.write_bytes(saved(content[within], _use_new_zipfile_serialization=zipped))

    with pytest.raises(CureError):
        checkpoints.read_state(file, "model")
    try:
        checkpoints.convert(file, out)
    except CureError:
        # torch reads no file that names `os`; one of before 1.6 is not asked for its names.
        assert within != "beside" or attack in ("os.system", "state") or not zipped
        assert not out.exists()
    else:
        assert within == "beside"
        assert load_file(out).keys() == state().keys()
    with pytest.raises(CureError):
        models.load("clef-small", file)
    assert not mark.exists()

    torch.load(file, weights_only=False)  # the file is armed: what was tested above is not an empty threat
    assert mark.exists()


def test_stand_ins_are_gone_after_a_conversion(project):
    file = project / "a.pt"
    file.write_bytes(saved({"model": state(), "cfg": Settings(a=1)}))
    before = set(torch.serialization.get_safe_globals())
    checkpoints.convert(file, project / "out.safetensors")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
