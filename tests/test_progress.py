import os
import time

from cure.progress import TERMINAL, counted, progress


def test_in_a_stage_the_bar_goes_to_the_terminal_that_watches_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(TERMINAL, str(tmp_path / "tty"))
    assert list(progress(range(3), desc="embed", total=3)) == [0, 1, 2]
    assert "embed" in (tmp_path / "tty").read_text()
    monkeypatch.setenv(TERMINAL, "")
    assert list(progress(range(3), desc="embed")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_items_of_several_records_are_counted_in_records_from_where_an_interrupted_run_was(tmp_path, monkeypatch):
    tty = tmp_path / "tty"
    monkeypatch.setenv(TERMINAL, str(tty))
    for item in counted("ab", [512, 176], desc="embed", total=1200, unit="record"):
        assert f"{512 if item == 'a' else 1024}/1200" in tty.read_text()
        time.sleep(0.2)  # a bar is drawn ten times a second at most
    assert "record/s" in tty.read_text()
    monkeypatch.setenv(TERMINAL, "")
    assert list(counted("ab", [512, 176], desc="embed", total=688, unit="record")) == ["a", "b"]


def test_a_stage_does_not_switch_bars_off():
    from cure import notebooks

    assert not {name for name in notebooks.ENVIRONMENT if name.startswith("TQDM")}
    assert "TQDM_DISABLE" not in os.environ
