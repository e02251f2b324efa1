import pytest

from cure import paths


def test_atomic_replaces_a_file_only_on_success(tmp_path):
    file = tmp_path / "deep" / "a.txt"
    with paths.atomic(file) as part:
        part.write_text("one")
    with pytest.raises(RuntimeError), paths.atomic(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert file.read_text() == "one"
    assert [f.name for f in file.parent.iterdir()] == ["a.txt"]


def test_atomic_replaces_a_folder_whole(tmp_path):
    target = tmp_path / "store"
    for content in ("one", "two"):
        with paths.atomic(target) as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [f.name for f in target.iterdir()] == ["two"]
    with pytest.raises(RuntimeError), paths.atomic(target) as part:
        part.mkdir()
        raise RuntimeError
    assert [f.name for f in target.iterdir()] == ["two"]
    assert [f.name for f in tmp_path.iterdir()] == ["store"]


def test_no_space_leaves_what_was_there(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with pytest.raises(OSError, match="No space"), paths.atomic(file) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert file.read_text() == "old"


def test_root_is_found_from_below_and_raw_follows_its_variable(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project / "notebooks")
    assert paths.root() == project
    monkeypatch.delenv("CURE_PTBXL_DIR", raising=False)
    assert paths.raw("ptbxl", "any") == project / "data" / "raw" / "ptbxl"
    monkeypatch.setenv("CURE_PTBXL_DIR", str(tmp_path))
    assert paths.raw("ptbxl", "any") == tmp_path
    assert paths.raw("synthetic", "any") == project / "data" / "raw" / "synthetic-any"
