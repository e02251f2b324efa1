"""The bundle is the same each time, holds what it should, and is refused when it was tampered with."""

import io
import os
import tarfile

import artifact
import joblib
import pandas as pd
import pytest

from cure import archive, cli
from cure.errors import CureError

P = artifact.PROFILE
TOP = "cure-0.1.0-demo"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(artifact.write(folder))
    return folder


@pytest.fixture
def bundle(root, tmp_path):
    return archive.make(P, tmp_path / "one.tar")


def entries(file):
    with tarfile.open(file) as tar:
        return {member.name: (member, tar.extractfile(member).read()) for member in tar.getmembers()}


def rewritten(file, change, add=()):
    """A copy whose members went through `change(name, blob)`; `add` are further (TarInfo, blob)."""
    out = file.with_name("changed.tar")
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, (_, blob) in entries(file).items():
            changed = change(name, blob)
            if changed is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))
        for info, blob in add:
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return out


def same(_, blob):
    return blob


def test_twice_the_same_bytes_whatever_the_times(root, bundle, tmp_path):
    for i, file in enumerate(sorted(root.rglob("*"))):
        os.utime(file, (i, i))
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "big.dat").write_text("not part of it")
    (root / ".venv").mkdir()
    (root / ".venv" / "x.py").write_text("")
    assert archive.make(P, tmp_path / "two.tar").read_bytes() == bundle.read_bytes()


def test_what_it_holds(bundle):
    found = entries(bundle)
    names = list(found)
    assert names[:-1] == sorted(names[:-1]) and names[-1] == f"{TOP}/SHA256SUMS"
    for name in ("claims.yaml", "dvc.lock", "runtime.lock", "notebooks/06_finetune.ipynb", f"tables/{P}/toy_means.csv"):
        assert f"{TOP}/{name}" in found
    for member, _ in found.values():
        assert member.isreg() and member.mtime == archive.EPOCH and member.mode == 0o644
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
    sums = found[f"{TOP}/SHA256SUMS"][1].decode().splitlines()
    assert len(sums) == len(names) - 1


def test_a_whole_bundle_passes(bundle, capsys):
    assert cli.main(["archive", "--check", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert (
        "PASS     checksums" in text
        and "PASS     tables of finetune" in text
        and "PASS     figures of finetune" in text
    )


def test_checking_names_the_tables_that_are_not_made_again(root, tmp_path, capsys):
    (root / f"tables/{P}/toy_other.csv").write_text("a\n1\n")
    bundle = archive.make(P, tmp_path / "other.tar")
    assert cli.main(["archive", "--check", str(bundle)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "other tables" in line]
    assert line.startswith("SKIPPED") and line.endswith("do not follow from predictions alone: toy_other")


def test_a_changed_file_is_found_by_its_sum(bundle, capsys):
    file = rewritten(bundle, lambda name, blob: blob + b"\n" if name.endswith("toy_means.csv") else blob)
    assert cli.main(["archive", "--check", str(file)]) == 1
    assert f"tables/{P}/toy_means.csv was changed" in capsys.readouterr().out
    (one,) = archive.check(rewritten(bundle, lambda name, blob: None if name.endswith("claims.yaml") else blob))
    assert one.status == "FAIL" and "claims.yaml is missing" in one.detail
    extra = [(tarfile.TarInfo(f"{TOP}/extra.txt"), b"hello")]
    (one,) = archive.check(rewritten(bundle, same, extra))
    assert "extra.txt is not listed" in one.detail


def test_a_changed_table_with_a_new_sum_is_found_by_its_predictions(root, tmp_path):
    file = root / f"tables/{P}/toy_means.csv"
    table = pd.read_csv(file)
    table.assign(value=table["value"] + 0.01).to_csv(file, index=False)
    checks = {one.name: one.status for one in archive.check(archive.make(P, tmp_path / "b.tar"))}
    assert checks["checksums"] == "PASS" and checks["tables of finetune"] == "FAIL"


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", f"{TOP}/../../evil", "other/evil", "evil", f"{TOP}/a\\..\\evil"]
)
def test_paths_that_climb_out_are_refused_and_nothing_is_unpacked(bundle, tmp_path, name):
    file = rewritten(bundle, same, [(tarfile.TarInfo(name), b"x")])
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CureError, match=r"must not be unpacked|no bundle"):
        archive.unpack(file, target)
    assert not list(target.iterdir()) and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(bundle, tmp_path, kind):
    info = tarfile.TarInfo(f"{TOP}/link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(CureError, match="must not be unpacked"):
        archive.unpack(rewritten(bundle, same, [(info, b"")]), tmp_path)


def test_a_name_twice_and_no_tar_are_refused(bundle, tmp_path):
    twice = rewritten(bundle, same, [(tarfile.TarInfo(f"{TOP}/claims.yaml"), b"claims: []")])
    with pytest.raises(CureError, match="no file twice"):
        archive.check(twice)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(b"x" * 2000)
    with pytest.raises(CureError, match="cannot be read as a bundle"):
        archive.check(cut)
    with pytest.raises(CureError, match="no file"):
        archive.check(tmp_path / "none.tar")


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(CureError, match=r"tables/ptbxl; .*cure repro --profile ptbxl"):
        archive.make("ptbxl", tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
