"""`cure embed`: the same embeddings as stage `embed` gives, leads made up for, runs that are killed and go on."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from own_files import ecgs, write_csv, write_npy, write_npz, write_wfdb
from safetensors.torch import save_file

from cure import cli, embed, models, paths
from cure.cohorts.base import Cohort
from cure.models.base import InputSpec
from cure.models.steps import Butterworth, Highpass, Resample
from cure.own import encode, stream
from cure.own.record import Record
from cure.signals import LEADS

FS = 250


@pytest.fixture(scope="module")
def mv():
    """Six ECGs, (6, 12, 2500) mV at 250 Hz."""
    return ecgs(6, FS)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, status=0, model="leadcnn", weights="random"):
    """`cure embed` to emb.parquet; what it wrote."""
    chosen = ["--model", model, *(["--weights", weights] if weights else [])]
    assert cli.main(["embed", *map(str, arguments), *chosen, "--out", "emb.parquet", "--workers", "0"]) == status
    return pd.read_parquet("emb.parquet")


def vectors(table):
    return np.stack(table["embedding"])


def refused(said, capsys, *arguments):
    assert cli.main(list(map(str, arguments))) == 1
    assert said in capsys.readouterr().err


# --- what is in the output


@pytest.mark.parametrize("model", ["leadcnn", "clef-small", "ked"])
def test_it_is_what_stage_embed_gives(raw_folder, cohort, tmp_path, model):
    """Record by record, from WFDB files and from the packed cohort: twelve leads, and one lead by a model of one."""
    names = cohort.records["record_id"].astype(int).tolist()[:24]
    files = [next(raw_folder.glob(f"records100/*/{name:05d}_lr.hea")) for name in names]
    few = Cohort(cohort.folder, cohort.records.iloc[:24].assign(row_500=-1), cohort.statements, cohort.info)
    encoder = models.load(model)
    embed.extract(few, encoder, ["mean"], tmp_path / "out", tmp_path / "scratch")
    table = run(*files, model=model)
    assert table["error"].isna().all()
    assert table["record"].tolist() == [file.as_posix() for file in files]
    expected = embed.read(tmp_path / "out", "mean", few)
    np.testing.assert_allclose(vectors(table), expected, atol=2e-4 * np.abs(expected).max())
    assert set(table["weights_sha256"]) == {encoder.weights_sha256()}
    assert pq.read_schema("emb.parquet").field("embedding").type.value_type == "float"
    # A model of one lead misses none; that the record has 100 Hz is said where the model works at 500.
    assert set(table["zero_filled"]) == {""}
    assert set(table["notes"]) == {"" if encoder.input_spec.source_fs == 100 else "upsampled from 100 Hz"}


def test_limb_leads_are_made_up_for_and_chest_leads_are_not(mv, tmp_path):
    eight = [0, 1, *range(6, 12)]
    write_npz(tmp_path / "a.npz", mv[0], FS)
    write_npz(tmp_path / "b.npz", mv[0][eight], FS, [LEADS[i] for i in eight])
    write_npz(
        tmp_path / "c.npz",
        np.where(np.arange(12)[:, None] == 8, 0, mv[0])[np.arange(12) != 8],
        FS,
        [lead for lead in LEADS if lead != "V3"],
    )
    write_npz(tmp_path / "d.npz", mv[0][[1]], FS, ["II"])
    table = run(tmp_path)
    whole, derived, zero, one = vectors(table)
    np.testing.assert_allclose(derived, whole, atol=1e-3 * np.abs(whole).max())
    assert np.abs(zero - whole).max() > 0.01 * np.abs(whole).max()
    assert np.isfinite(one).all()
    assert table["derived"].tolist() == ["", "III,aVR,aVL,aVF", "", ""]
    assert table["zero_filled"].tolist() == ["", "", "V3", ",".join(lead for lead in LEADS if lead != "II")]
    assert table["quality"].tolist() == ["", "", "missing-leads", "missing-leads"]
    assert table["leads"].tolist()[3] == "II"


def test_rates_lengths_and_units_do_not_change_what_is_seen(mv, tmp_path):
    """The same hearts at other rates, units and orders: embeddings of one ECG are alike, of two they are not."""
    dense = ecgs(2, 500)
    write_npz(tmp_path / "a.npz", dense[0], 500)
    write_npz(tmp_path / "b.npz", dense[0][::-1], 500, LEADS[::-1], unit="uV")
    write_csv(tmp_path / "c.csv", dense[0][:, ::2], 250, [f"{lead}_mV" for lead in LEADS])
    write_npz(tmp_path / "d.npz", encode.resample(dense[:1].astype(np.float32), 500, 333.3)[0], 333.3)
    write_npz(tmp_path / "e.npz", dense[1], 500)
    table = run(tmp_path)
    x = vectors(table)
    off = np.linalg.norm(x - x[0], axis=1)
    assert off[1] < 1e-5 * np.linalg.norm(x[0])
    assert max(off[2], off[3]) < 0.05 * off[4], off
    assert table["fs"].tolist() == [500, 500, 250, 333.3, 500]


def test_a_short_record_is_filled_up_and_a_long_one_has_several_windows(mv, tmp_path):
    long = np.concatenate([mv[0], mv[1]], axis=1)
    write_npz(tmp_path / "a.npz", mv[0], FS)
    write_npz(tmp_path / "b.npz", mv[0][:, : 6 * FS], FS)
    write_npz(tmp_path / "c.npz", long, FS)
    table = run(tmp_path)
    assert table["notes"].tolist() == ["", "6 s filled up to 10 s", ""]
    encoder = models.load("leadcnn")
    windows = torch.from_numpy(encoder.input_spec.apply(long[None].astype(np.float32), FS)[0])
    assert len(windows) == 2
    with torch.inference_mode():
        expected = encoder(windows).mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(vectors(table)[2], expected, atol=1e-4 * np.abs(expected).max())
    # Zeros behind six seconds are not pooled: the mean is near that of the tokens of the first six seconds.
    tokens = encoder(torch.from_numpy(encoder.input_spec.apply(mv[:1].astype(np.float32), FS)[0]))[0].detach().numpy()
    first, all_zeros = tokens[: int(len(tokens) * 0.6)].mean(axis=0), vectors(table)[1]
    assert np.linalg.norm(all_zeros - first) < 0.2 * np.linalg.norm(first)


def test_filters_that_a_low_rate_cannot_have_work_at_the_encoders_rate():
    band = InputSpec(fs=250, seconds=4, record=(Butterworth("bandpass", 3, (0.5, 40.0)), Resample(250)))
    assert [encode.working_rate(band, fs) for fs in (64, 82, 100, 257.5, 1000)] == [250, 82, 100, 258, 1000]
    plain = InputSpec(fs=100, seconds=4, record=(Highpass(0.5), Resample(100)))
    assert [encode.working_rate(plain, fs) for fs in (64, 97.3)] == [64, 98]
    x = ecgs(1, 128)[0][:, ::2].astype(np.float32)
    record = Record(x, 64.0, np.ones(12, bool), np.zeros(12, bool))
    assert encode.condition(band, [record]).shape == (1, 3, 12, 1000)


# --- errors


def test_a_mixed_folder_gives_what_it_can(mv, tmp_path, capsys):
    write_wfdb(tmp_path / "good", mv[0], FS)
    write_wfdb(tmp_path / "gone", mv[1], FS).with_suffix(".dat").unlink()
    (tmp_path / "bad.edf").write_text("not an EDF")
    write_npz(tmp_path / "nan.npz", np.where(np.arange(2500) == 7, np.nan, mv[0]), FS)
    write_npz(tmp_path / "z.npz", mv[2], FS)
    table = run(tmp_path).set_index("record")
    table.index = [name.rpartition("/")[2] for name in table.index]
    assert table.index[table["error"].isna()].tolist() == ["good.hea", "z.npz"]
    assert table["embedding"].notna().equals(table["error"].isna())
    assert table.loc["gone.hea", "error"] == "missing file gone.dat"
    assert "NaN" in table.loc["nan.npz", "error"]
    assert set(table["model"]) == {"leadcnn"}
    said = capsys.readouterr().out
    assert "2 of 5 records" in said
    assert "bad.edf: unreadable or damaged" in said


def test_none_that_works_is_an_error(tmp_path, capsys):
    (tmp_path / "bad.edf").write_text("not an EDF")
    table = run(tmp_path, status=1)
    assert table["error"].notna().all()
    assert "none of the 1 records could be used: emb.parquet says why" in capsys.readouterr().err


def test_a_record_that_breaks_a_batch_is_found_alone(mv, monkeypatch):
    runner = encode.Runner(models.load("leadcnn"), batch_size=8)
    records = [Record(one.astype(np.float32), FS, np.ones(12, bool), np.zeros(12, bool)) for one in mv]
    whole = runner(records)
    right = encode.condition

    def breaks(spec, some):
        if any(one is records[3] for one in some):
            raise ValueError("no such\nfilter")
        return right(spec, some)

    monkeypatch.setattr(encode, "condition", breaks)
    found = runner(records)
    assert found[3] == "cannot be encoded (ValueError: no such filter)"
    for i in (0, 1, 2, 4, 5):
        np.testing.assert_allclose(found[i], whole[i], rtol=1e-4, atol=1e-5)


def test_what_is_wrong_with_the_command_is_said(mv, tmp_path, capsys, monkeypatch):
    path = write_npz(tmp_path / "a.npz", mv[0], FS)
    few = ["embed", path, "--weights", "random", "--model"]
    refused("unknown encoder 'resnet'", capsys, *few, "resnet")
    refused("embeddings go to a .parquet file", capsys, *few, "leadcnn", "--out", "emb.csv")
    refused("--leads: 'V9' is no standard lead", capsys, *few, "leadcnn", "--leads", "I,V9")
    refused("--gain is for --unit adc, not for mV", capsys, *few, "leadcnn", "--gain", "200", "--unit", "mV")
    refused("--rate 0: a positive number", capsys, *few, "leadcnn", "--rate", "0")
    refused("--max-seconds 1: 2 at least", capsys, *few, "leadcnn", "--max-seconds", "1")
    refused("--batch 0: 1 at least", capsys, *few, "leadcnn", "--batch", "0")
    refused("unknown profile 'nope'", capsys, "embed", path, "--model", "leadcnn", "--profile", "nope")
    refused("nowhere is not there", capsys, "embed", "nowhere", "--model", "leadcnn", "--weights", "random")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("torch sees no GPU here", capsys, *few, "leadcnn", "--device", "cuda")
    assert not list(tmp_path.glob("emb*"))


def test_a_path_that_leads_to_no_record_is_a_row_and_stops_nothing(mv, tmp_path, capsys):
    """As `cure embed ecgs/*` names them: words, a folder without records, a file that is gone, a JSON beside one."""
    folder = tmp_path / "ecgs"
    (folder / "empty").mkdir(parents=True)
    (folder / "README.txt").write_text("words")
    write_npz(folder / "a.npz", mv[0], FS)
    write_npz(folder / "z.npz", mv[1], FS)
    write_npy(folder / "m.npy", mv[2], fs=FS, unit="mV", leads=list(LEADS))
    assert (folder / "m.json").is_file()
    names = sorted(path.relative_to(tmp_path) for path in folder.iterdir())
    table = run(*names, "ecgs/gone.csv", "ecgs/a.npz").set_index("record")
    assert table.index.tolist() == [
        *("ecgs/README.txt", "ecgs/a.npz", "ecgs/empty", "ecgs/m.npy", "ecgs/z.npz", "ecgs/gone.csv")
    ]
    good = ["ecgs/a.npz", "ecgs/m.npy", "ecgs/z.npz"]
    assert table["error"].isna().tolist() == [name in good for name in table.index]
    assert table["error"]["ecgs/README.txt"].startswith("ecgs/README.txt is of no known format: .csv, ")
    assert table["error"]["ecgs/empty"].startswith("no record of ")
    assert table["error"]["ecgs/gone.csv"] == "ecgs/gone.csv is not there"
    out = capsys.readouterr().out
    assert "3 of 6 records" in out and "ecgs/gone.csv: ecgs/gone.csv is not there" in out
    same = run(*good, "--restart")
    np.testing.assert_array_equal(vectors(same), vectors(table.loc[good]))
    # An output in the folder that is named is passed over, and so is what --format leaves out.
    assert len(run(*names, "emb.parquet", "emb.parquet.parts", "--restart", "--format", "numpy")) == 5
    few = ["--model", "leadcnn", "--weights", "random", "--out", "other.parquet"]
    refused("gone is not there; ecgs/README.txt is of no known", capsys, "embed", "gone", "ecgs/README.txt", *few)
    refused("no record of format edf at ecgs/a.npz", capsys, "embed", "ecgs/a.npz", "--format", "edf", *few)
    assert not (tmp_path / "other.parquet").exists()


def test_an_unfinished_run_knows_the_paths_that_led_nowhere(mv, tmp_path, capsys, monkeypatch):
    write_npz(tmp_path / "a.npz", mv[0], FS)

    def interrupted(*_):
        raise KeyboardInterrupt

    few = ["--model", "leadcnn", "--weights", "random", "--out", "emb.parquet", "--workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(stream, "load", interrupted)
        assert cli.main(["embed", "a.npz", "gone.csv", *few]) == 130
    refused("differs in the records", capsys, "embed", "a.npz", "lost.csv", *few)
    assert cli.main(["embed", "a.npz", "gone.csv", *few]) == 0
    assert pd.read_parquet("emb.parquet")["record"].tolist() == ["a.npz", "gone.csv"]


def test_weights_by_name_by_file_and_none_at_all(mv, tmp_path, capsys, project):
    path = write_npz(tmp_path / "a.npz", mv[0], FS)
    refused("say the weights of leadcnn with --weights: random, hub", capsys, "embed", path, "--model", "leadcnn")
    refused("`cure weights fetch", capsys, "embed", path, "--model", "clef-small")  # published: its own by default
    encoder = models.load("leadcnn", seed=3)
    for name in ("leadcnn-ssl-simulated-0/all", "leadcnn-ssl-folds-0/split-1"):
        file = paths.weights("tiny") / f"{name}.safetensors"
        file.parent.mkdir(parents=True)
        save_file(encoder.state_dict(), file)
    save_file(encoder.state_dict(), tmp_path / "mine.safetensors")
    for weights, shown in [
        ("ssl-simulated", "tiny/leadcnn-ssl-simulated-0/all"),
        ("leadcnn-ssl-simulated-0", "tiny/leadcnn-ssl-simulated-0/all"),
        ("leadcnn-ssl-folds-0/split-1", "tiny/leadcnn-ssl-folds-0/split-1"),
        (str(tmp_path / "mine.safetensors"), "mine.safetensors"),
    ]:
        table = run(path, "--profile", "tiny", "--restart", weights=weights)
        assert table["weights"].tolist() == [shown]
        assert table["weights_sha256"].tolist() == [encoder.weights_sha256()]
    refused(
        "no weights 'ssl' of leadcnn: --weights takes random, hub (published ones), the path of a file, or those of "
        "profile tiny (leadcnn-ssl-folds-0/split-1, leadcnn-ssl-simulated-0/all)",
        *(capsys, "embed", path, "--model", "leadcnn", "--weights", "ssl", "--profile", "tiny"),
    )


# --- interrupted


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(mv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "PART", 2)
    folder = tmp_path / "ecgs"
    folder.mkdir()
    for i, one in enumerate(mv):
        write_npz(folder / f"{i}.npz", one, FS)
    (folder / "3.npz").write_bytes(b"")
    arguments = ["embed", "ecgs", "--model", "leadcnn", "--weights", "random", "--workers", "0", "--out"]
    assert cli.main([*arguments, "whole.parquet"]) == 0

    read, left = stream.load, [2]

    def interrupted(items, *others):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return read(items, *others)

    monkeypatch.setattr(stream, "load", interrupted)
    assert cli.main([*arguments, "emb.parquet"]) == 130
    assert not (tmp_path / "emb.parquet").exists()
    assert len(list((tmp_path / "emb.parquet.parts").glob("*.parquet"))) == 2
    # Another option, or other records, and the parts stay as they are.
    before = sorted(file.read_bytes() for file in (tmp_path / "emb.parquet.parts").iterdir())
    refused("differs in pooling (mean then, max now)", capsys, *arguments, "emb.parquet", "--pooling", "max")
    refused("differs in max_seconds (60.0 then, 5.0 now)", capsys, *arguments, "emb.parquet", "--max-seconds", "5")
    write_npz(folder / "7.npz", mv[0], FS)
    refused("differs in the records (6 then, 7 now", capsys, *arguments, "emb.parquet")
    (folder / "7.npz").unlink()
    (folder / "5.json").write_text("{}")  # a file beside a record counts as the record
    refused("their files changed", capsys, *arguments, "emb.parquet")
    (folder / "5.json").unlink()
    assert before == sorted(file.read_bytes() for file in (tmp_path / "emb.parquet.parts").iterdir())

    left[0] = 1  # one part is left to do, and no more is done
    assert cli.main([*arguments, "emb.parquet"]) == 0
    assert (tmp_path / "emb.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "emb.parquet.parts").exists()
    refused("emb.parquet is there already", capsys, *arguments, "emb.parquet")
    left[0] = 3
    assert cli.main([*arguments, "emb.parquet", "--restart", "--pooling", "max"]) == 0
    assert set(pd.read_parquet("emb.parquet")["pooling"]) == {"max"}


@pytest.mark.long
def test_a_killed_run_leaves_no_process_and_goes_on(mv, tmp_path):
    """Outright, in the middle, with two processes that read."""
    n = 12 * stream.PART
    x = np.tile(mv[0][None, :2, : FS * 2], (n, 1, 1)) * np.linspace(0.5, 1.5, n)[:, None, None]
    write_npy(tmp_path / "many.npy", x.astype(np.float32), fs=FS, unit="mV", leads=["I", "II"])
    arguments = ["embed", "many.npy", "--model", "leadcnn", "--weights", "random", "--out", "emb.parquet"]
    code = "from cure.own import stream; stream._FEW_PARTS = 0; from cure.cli import main; "
    code += f"raise SystemExit(main({[*arguments, '--workers', '2']!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    parts, deadline = tmp_path / "emb.parquet.parts", time.monotonic() + 500
    while len(list(parts.glob("0*.parquet"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {file.name: file.stat().st_mtime_ns for file in parts.glob("0*.parquet")}
    assert 2 <= len(there) < 12
    assert not (tmp_path / "emb.parquet").exists()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert cli.main([*arguments, "--workers", "0"]) == 0
    table = pd.read_parquet("emb.parquet")
    assert table["record"].tolist() == [f"many.npy#{i}" for i in range(n)]
    assert table["error"].isna().all()
    assert np.isfinite(vectors(table)).all()


def test_memory_is_bounded_by_parts_read_ahead():
    """Never more batches are asked for than may wait."""
    from concurrent.futures import Future

    asked: list[int] = []

    def read(batch):
        asked.append(batch)
        done = Future()
        done.set_result(batch)
        return done

    for i, found in enumerate(stream._ahead(read, list(range(10)), 3)):
        assert found == i
        assert len(asked) <= i + 4
    assert asked == list(range(10))
