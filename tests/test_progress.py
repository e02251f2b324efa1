import os

from cure.progress import TERMINAL, progress


def test_in_a_stage_the_bar_goes_to_the_terminal_that_watches_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(TERMINAL, str(tmp_path / "tty"))
    assert list(progress(range(3), desc="embed", total=3)) == [0, 1, 2]
    assert "embed" in (tmp_path / "tty").read_text()
    monkeypatch.setenv(TERMINAL, "")
    assert list(progress(range(3), desc="embed")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_stage_does_not_switch_bars_off():
    from cure import notebooks

    assert not {name for name in notebooks.ENVIRONMENT if name.startswith("TQDM")}
    assert "TQDM_DISABLE" not in os.environ
