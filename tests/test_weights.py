"""Published weights: a hub that moves, cuts and lies; files that are not the pinned ones."""

import json

import pytest
import torch
import yaml
from hub import CHECKPOINT, COMMIT, Settings, hub_fixture, project_fixture, put, saved, sha, state, to_bytes, zipped  # noqa: F401
from safetensors.torch import load_file, save_file

from cure import cli, download, models
from cure.catalogue import catalogue
from cure.errors import CureError
from cure.models import checkpoints, weights


def test_a_first_fetch_pins_and_a_second_transfers_nothing(hub, project, capsys):
    file = weights.fetch("ecgfounder")
    assert file == project / "data/weights/published/ecgfounder/12_lead_ECGFounder.pth"
    assert file.read_bytes() == CHECKPOINT
    assert yaml.safe_load((project / "weights.lock.yaml").read_text()) == {
        "ecgfounder": {
            "url": f"{hub.url}PKUDigitalHealth/ECGFounder/resolve/{COMMIT}/12_lead_ECGFounder.pth",
            "revision": COMMIT,
            "size": len(CHECKPOINT),
            "sha256": sha(CHECKPOINT),
            "converted_sha256": None,
        }
    }
    assert "Licence of the weights: not stated (code: MIT)" in capsys.readouterr().out
    lock, asked = (project / "weights.lock.yaml").read_bytes(), len(hub.asked)
    assert weights.fetch("ecgfounder") == weights.verify("ecgfounder") == file
    assert len(hub.asked) == asked
    assert (project / "weights.lock.yaml").read_bytes() == lock


def test_a_licence_is_printed_before_the_transfer(project, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(weights, "_download", lambda *_: said.append(capsys.readouterr().out) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.fetch("hubert-ecg-small")
    assert "NON-COMMERCIAL USE ONLY" in said[0]
    assert "CC BY-NC 4.0" in said[0]


def test_a_locked_file_comes_from_its_own_revision_on_another_machine(hub, project):
    file = weights.fetch("ecgfounder")
    file.unlink()
    hub.asked.clear()
    weights.fetch("ecgfounder")
    assert not any("HEAD" in one or "/main/" in one for one in hub.asked)
    assert any(f"resolve/{COMMIT}/" in one for one in hub.asked)


def test_a_cut_first_download_is_continued_by_the_next_command(hub):
    hub.faults["12_lead_ECGFounder.pth"] = [("cut", 10_000), ("status", 404, {})]
    with pytest.raises(CureError, match="404"):
        weights.fetch("ecgfounder")
    part = weights.place("ecgfounder").with_name("12_lead_ECGFounder.pth.part")
    there = part.stat().st_size
    assert 0 < there < len(CHECKPOINT)
    weights.fetch("ecgfounder")
    assert hub.requests[-1]["range"] == f"bytes={there}-"


def test_a_renamed_repository_is_followed(hub, monkeypatch):
    monkeypatch.setitem(weights.ADDRESSES, "huggingface", f"{hub.url}old")
    hub.names_hash = False
    commit, sha256 = weights._ask_hub(f"{hub.url}old/a/b/resolve/main/12_lead_ECGFounder.pth")
    assert (commit, sha256) == (COMMIT, None)


def test_another_content_than_pinned_is_never_kept(hub):
    file = weights.fetch("ecgfounder")
    file.unlink()
    hub.files["12_lead_ECGFounder.pth"] = saved({"state_dict": state(8)})
    with pytest.raises(CureError, match=r"12_lead_ECGFounder.pth .*twice in a row.*cure weights fetch ecgfounder"):
        weights.fetch("ecgfounder")
    assert not file.exists()


def test_a_login_page_is_no_file_of_weights(hub, project):
    hub.files["12_lead_ECGFounder.pth"] = b"<!DOCTYPE html><html>Sign in to download</html>"
    with pytest.raises(CureError, match=r"no file of weights \(a login page, perhaps\).*by hand"):
        weights.fetch("ecgfounder")
    assert not list(project.rglob("*.pth"))
    assert weights.locked() == {}


def test_offline_and_missing_name_the_file_its_home_and_the_command(project, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)
    for kind in weights.ADDRESSES:
        monkeypatch.setitem(weights.ADDRESSES, kind, "http://127.0.0.1:9")
    for name in ("ecgfounder", "ked", "ecg-cpc"):
        home = catalogue()[name].home
        for act in (weights.fetch, weights.find, weights.verify, lambda name: models.load(name, "hub")):
            with pytest.raises(CureError) as error:
                act(name)
            for said in (f"data/weights/published/{name}/{home.file}", str(home.page), f"`cure weights fetch {name}`"):
                assert said in str(error.value)


def test_a_file_that_only_a_person_can_get_is_recorded_when_it_is_there(project, capsys):
    with pytest.raises(CureError, match=r"by hand from https://drive.google.com.*published/st-mem/st-mem.pth"):
        weights.fetch("st-mem")
    content = saved({"model": state()})
    put("st-mem", content)
    with pytest.raises(CureError, match=r"not in weights\.lock\.yaml: `cure weights fetch st-mem`"):
        weights.verify("st-mem")
    weights.fetch("st-mem")
    pin = weights.locked()["st-mem"]
    assert (pin.sha256, pin.url, pin.revision) == (sha(content), "by hand", None)
    put("st-mem", saved({"model": state(8)}))
    with pytest.raises(CureError, match="another file than pinned"):
        weights.fetch("st-mem")


def test_a_file_that_was_there_before_is_not_said_to_come_from_its_home(hub, monkeypatch):
    put("ecgfounder", CHECKPOINT)
    fixed = catalogue()["ecgfounder"].home.model_copy(update={"revision": COMMIT})
    monkeypatch.setattr(weights, "_home", lambda name: fixed)
    weights.fetch("ecgfounder")
    pin = weights.locked()["ecgfounder"]
    assert (pin.sha256, pin.url, pin.revision) == (sha(CHECKPOINT), "by hand", None)
    assert hub.asked == []
    weights.place("ecgfounder").unlink()  # as on another machine
    weights.fetch("ecgfounder")
    assert weights.locked()["ecgfounder"] == pin


DAMAGED = {
    "cut": CHECKPOINT[:-200],
    "cut early": CHECKPOINT[:2000],
    "other zip": None,
    "cut safetensors": to_bytes(state())[:-4],
    "header alone": (200).to_bytes(8, "little") + b"{" + b" " * 198 + b"]",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_first_file_is_not_pinned(hub, project, damage):
    content = DAMAGED[damage] or zipped({"a.txt": b"hello"})
    hub.files["12_lead_ECGFounder.pth"] = content
    with pytest.raises(CureError, match=r"damaged or cut short|no file of weights"):
        weights.fetch("ecgfounder")
    assert not list(project.rglob("*.pth"))
    put("st-mem", content)
    with pytest.raises(CureError, match=r"st-mem\.pth is (damaged or cut short|no file of weights)"):
        weights.fetch("st-mem")
    assert weights.locked() == {}


def test_safetensors_and_older_checkpoints_are_pinned_too(project):
    for name, content in {
        "hubert-ecg-small": to_bytes(state()),
        "st-mem": saved(state(), _use_new_zipfile_serialization=False),
    }.items():
        put(name, content)
        weights.fetch(name)
        assert weights.locked()[name].sha256 == sha(content)


def test_a_page_saved_in_the_place_of_a_file_is_not_recorded(project):
    file = put("st-mem", b"<html>Google Drive</html>")
    with pytest.raises(CureError, match="no file of weights"):
        weights.fetch("st-mem")
    assert file.exists()
    assert weights.locked() == {}


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_may_come_in_an_archive(hub, packed):
    members = {
        "checkpoint/config_last_11597276_ckpt.yaml": b"a: 1",
        "checkpoint/last_11597276.ckpt": CHECKPOINT,
        "__MACOSX/checkpoint/last_11597276.ckpt": b"resource fork",
    }
    hub.files["files/58173919"] = zipped(members) if packed else CHECKPOINT
    for _ in range(2):  # the second time against the pin
        file = weights.fetch("ecg-cpc")
        assert file.read_bytes() == CHECKPOINT
        assert [one.name for one in file.parent.iterdir()] == [file.name]
        file.unlink()
    assert weights.locked()["ecg-cpc"].sha256 == sha(CHECKPOINT)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped({"a/last_11597276.ckpt": CHECKPOINT})[:-60], "is damaged or no archive"),
        (zipped({"a/last_11597276.ckpt": CHECKPOINT}).replace(CHECKPOINT[900:990], b"x" * 90), "is damaged or no"),
        (zipped({"a/other.ckpt": CHECKPOINT}), "holds 0 files named last_11597276.ckpt, not one; it holds: a/other"),
        (zipped({f"{i}/last_11597276.ckpt": CHECKPOINT for i in "ab"}), "holds 2 files named last_11597276.ckpt"),
        (b"<html>Sign in</html>", "is damaged or no archive"),
    ],
    ids=["cut", "changed", "none", "two", "page"],
)
def test_an_archive_that_does_not_hold_the_file_is_an_error(hub, project, content, said):
    hub.files["files/58173919"] = content
    with pytest.raises(CureError, match=f"{said}.*`cure weights fetch ecg-cpc` again"):
        weights.fetch("ecg-cpc")
    assert not list(weights.place("ecg-cpc").parent.iterdir())
    assert weights.locked() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-100], "truncated or another file: .* bytes"),
        (lambda data: data[:-100] + b"x" * 100, "another file than the one pinned: sha256"),
    ],
)
def test_a_pinned_file_that_changed_is_refused(hub, change, said):
    file = weights.fetch("ecgfounder")
    file.write_bytes(change(CHECKPOINT))
    for act in (weights.verify, lambda name: models.load(name, "hub")):
        with pytest.raises(CureError, match=f"{said}.*`cure weights fetch ecgfounder`"):
            act("ecgfounder")
    weights.fetch("ecgfounder")
    assert file.read_bytes() == CHECKPOINT


@pytest.mark.parametrize("text", ["- a", "a: [", "ked: {url: x}", "ked: {url: x, revision: null, size: 1, sha256: no}"])
def test_a_damaged_lock_file_is_named(project, text):
    (project / "weights.lock.yaml").write_text(text)
    with pytest.raises(CureError, match=r"weights\.lock\.yaml is not a lock file"):
        weights.locked()


def test_models_without_published_weights_say_so(project):
    with pytest.raises(CureError, match="weimann-jepa-xs has no published weights: train it"):
        models.load("weimann-jepa-xs", "hub")
    with pytest.raises(CureError, match="'leadcnn' has no weights 'hub'"):
        models.load("leadcnn", "hub")


def test_a_converted_file_stands_for_the_one_it_was_made_of(hub, project):
    content = saved({"model": state(), "cfg": Settings(a=1)})
    hub.files["mimic_iv_ecg_physionet_pretrained.pt"] = content
    file = weights.fetch("ecg-fm")
    with pytest.raises(CureError, match="cure weights convert data/weights/published/ecg-fm/mimic"):
        models.load("ecg-fm", "hub")
    assert cli.main(["weights", "convert", str(file)]) == 0
    converted = weights.find("ecg-fm")
    assert converted.suffix == ".safetensors"
    assert torch.equal(models.load("ecg-fm", "hub").norm.weight, state()["norm.weight"])
    assert models.load("ecg-fm", converted).pretraining == ("unknown",)
    other = project / "other.pt"
    other.write_bytes(saved({"model": state(8)}))
    checkpoints.convert(other, converted)
    with pytest.raises(CureError, match="was converted from another file than the one pinned"):
        models.load("ecg-fm", "hub")


def tampered(file):
    """The same converted file with another weight, and the header as it was."""
    tensors = load_file(file)
    tensors["norm.weight"] = tensors["norm.weight"] + 1
    save_file(tensors, file, metadata={"about": json.dumps(checkpoints.about(file), sort_keys=True)})


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("source_there", [True, False])
def test_a_converted_file_is_checked_by_its_own_hash(project, pinned, source_there):
    content = saved({"model": state(), "cfg": Settings(a=1)})
    source = put("ecg-fm", content)
    weights.fetch("ecg-fm")
    converted = source.with_suffix(".safetensors")
    checkpoints.convert(source, converted)
    good = converted.read_bytes()
    if pinned:
        assert weights.verify("ecg-fm") == converted
        assert weights.locked()["ecg-fm"].converted_sha256 == sha(good)
    if not source_there:
        source.unlink()
    lock = (project / weights.LOCK).read_bytes()
    tampered(converted)
    for act in (weights.verify, lambda name: models.load(name, "hub")):
        with pytest.raises(CureError, match="is another file than" if pinned else "is not pinned") as error:
            act("ecg-fm")
        assert "`cure weights convert data/weights/published/ecg-fm/mimic" in str(error.value)
    assert (project / weights.LOCK).read_bytes() == lock
    put("ecg-fm", content)  # what the error says to do
    checkpoints.convert(source, converted)
    assert weights.verify("ecg-fm") == converted
    assert weights.locked()["ecg-fm"].converted_sha256 == sha(good)
    source.unlink()
    assert weights.verify("ecg-fm") == converted  # its own pin is enough


def test_a_converted_file_without_a_source_or_pin_is_refused(project):
    source = put("ecg-fm", saved({"model": state()}))
    converted = source.with_suffix(".safetensors")
    checkpoints.convert(source, converted)
    with pytest.raises(CureError, match=r"converted from a file that is not in weights\.lock\.yaml: .*convert data"):
        models.load("ecg-fm", "hub")
    weights.fetch("ecg-fm")
    source.write_bytes(saved({"model": state(8)}))
    with pytest.raises(CureError, match=r"is not pinned in weights\.lock\.yaml as the conversion of mimic.*convert"):
        models.load("ecg-fm", "hub")
