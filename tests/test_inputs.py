"""What each model is fed, against scipy applied to one record and one lead at a time; short and padded records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as sps

from cure import models
from cure.cohorts.base import Cohort
from cure.cohorts.store import write_store
from cure.errors import CureError
from cure.models.base import REMAINDER, InputSpec
from cure.models.steps import MinMax, Resample, ZScore
from cure.signals import LEADS

MIMIC = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def pick(x, leads):
    return np.stack([x[LEADS.index(lead)] for lead in leads]).astype(float)


def polyphase(lead, fs, to):
    common = np.gcd(fs, to)
    return sps.resample_poly(lead, to // common, fs // common, padtype="line") if fs != to else lead


def ecgfounder(x, fs, leads=LEADS):
    out = []
    for lead in pick(x, leads):
        y = polyphase(lead, fs, 500)
        y = sps.filtfilt(*sps.iirnotch(50, 30, 500), y)
        y = sps.sosfiltfilt(sps.butter(4, [0.67, 40], "bandpass", fs=500, output="sos"), y)
        out.append(y - sps.medfilt(y, 201))
    out = np.array(out)
    return [(out - out.mean()) / (out.std() + 1e-8)]


def hubert(x, fs):
    out = []
    for lead in pick(x, LEADS):
        n_taps = int(0.3 * fs) + (int(0.3 * fs) % 2 == 0)
        y = sps.filtfilt(sps.firwin(n_taps, [0.05, 47], pass_zero=False, fs=fs), 1, lead)
        y = polyphase(y, fs, 500)
        out.append(2 * (y - y.min()) / np.ptp(y) - 1 if np.ptp(y) else 0 * y)
    out = np.array(out)
    return [sps.decimate(half.ravel(), 5) for half in (out[:, :2500], out[:, 2500:5000])]


def ecg_fm(x, fs):
    out = []
    for lead in pick(x, LEADS):
        n = len(lead) * 500 // fs
        y = np.interp(np.arange(n) * fs / 500, np.arange(len(lead)), lead)
        out.append((y - y.mean()) / y.std() if np.ptp(y) else 0 * y)
    return [np.array(out)[:, :2500], np.array(out)[:, 2500:5000]]


def ecg_jepa(x, fs):
    leads = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    return [np.array([sps.resample(lead, 2500) for lead in pick(x, leads)])]


def st_mem(x, fs):
    out = []
    for lead in pick(x, LEADS):
        y = polyphase(lead, fs, 250)
        y = sps.sosfiltfilt(sps.butter(5, 0.67, "highpass", fs=250, output="sos"), y)
        out.append(sps.sosfiltfilt(sps.butter(5, 40, "lowpass", fs=250, output="sos"), y))
    crops = [np.array(out)[:, start : start + 2250] for start in (0, 125, 250)]
    return [(crop - crop.mean()) / crop.std() for crop in crops]


def ecg_cpc(x, fs):
    out = np.array([polyphase(lead, fs, 240) for lead in pick(x, LEADS)])
    return [out[:, start : start + 600] for start in (0, 600, 1200, 1800)]


def merl(x, fs):
    out = np.array([polyphase(lead, fs, 500) for lead in pick(x, MIMIC)])
    return [(out - out.min()) / (out.max() - out.min())]


def ked(x, fs):
    return [np.array([sps.resample(lead, 1000) for lead in pick(x, MIMIC)])]


def clef(x, fs):
    out = polyphase(pick(x, ["II"])[0], fs, 500)
    return [((out - out.mean()) / out.std())[None]]


def weimann(x, fs):
    return [np.array([polyphase(lead, fs, 500) for lead in pick(x, LEADS)]) / 0.2]


REFERENCE = {
    "ecgfounder": ecgfounder,
    "ecgfounder-1lead": lambda x, fs: ecgfounder(x, fs, ["I"]),
    "hubert-ecg-small": hubert,
    "ecg-fm": ecg_fm,
    "ecg-jepa": ecg_jepa,
    "st-mem": st_mem,
    "ecg-cpc": ecg_cpc,
    "merl-resnet18": merl,
    "merl-vit-tiny": merl,
    "ked": ked,
    "clef-small": clef,
    "weimann-jepa-xs": weimann,
}


@pytest.fixture(scope="module")
def specs():
    import torch

    with torch.device("meta"):
        return {name: models.load(name).input_spec for name in REFERENCE}


@pytest.mark.parametrize("fs", [500, 400, 100])
@pytest.mark.parametrize("name", REFERENCE)
def test_every_model_is_fed_what_scipy_makes_of_one_record_at_a_time(cohort, specs, name, fs):
    rows = np.array([0, 3, 7])
    x = cohort.signals(rows, 500) if fs != 100 else cohort.signals(rows, 100)
    x = np.stack([[polyphase(lead, 500, 400) for lead in record] for record in x]) if fs == 400 else x
    x[1, 4] = 0.5  # a lead that was not recorded, on an offset
    made = specs[name].apply(x, fs)
    x[1, 4] = 0.0
    for mine, record in zip(made, x, strict=True):
        wanted = np.array(REFERENCE[name](record.astype(float), fs))
        assert mine.shape == wanted.shape
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=2e-3 * np.abs(wanted).max())


def test_what_is_flat_stays_finite():
    flat = np.zeros((1, 2, 50))
    assert (ZScore("lead")(flat, 100) == 0).all()
    assert (ZScore("record")(flat, 100) == 0).all()
    assert (MinMax("lead", -1, 1)(flat + 3, 100) == 0).all()


@given(n=st.integers(1, 200), extra=st.integers(0, 500), least=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_windows_cover_a_record_evenly_from_end_to_end(n, extra, least):
    spec = InputSpec(fs=1, seconds=n, n_windows=least)
    starts = spec.starts(n + extra, n)
    needed = -(-(n + extra) // n)
    remainder = (n + extra) % n
    if 0 < remainder < REMAINDER * n:
        needed -= 1
    assert len(starts) == (max(needed, least) if extra else 1)
    assert np.ptp(np.diff(starts)) <= 1 if len(starts) > 1 else True
    if len(starts) > 1:
        assert starts[0] == 0
        assert starts[-1] == extra
    missed = n + extra - len(set(np.concatenate([np.arange(s, s + n) for s in starts])))
    assert missed < max(REMAINDER * n, 1), "nothing is left out but a remainder"


def test_a_remainder_gets_no_window_and_a_single_window_is_centred():
    assert InputSpec(fs=400, seconds=10).starts(4096, 4000).tolist() == [48]
    assert InputSpec(fs=400, seconds=10).starts(4200, 4000).tolist() == [0, 200]
    assert InputSpec(fs=400, seconds=5).starts(4096, 2000).tolist() == [0, 2096]
    assert InputSpec(fs=400, seconds=9, n_windows=3).starts(3610, 3600).tolist() == [0, 5, 10]


def test_steps_that_end_at_another_rate_are_an_error():
    with pytest.raises(CureError, match="end at 250 Hz, not at the 500 Hz"):
        InputSpec(fs=500, seconds=1, record=(Resample(250),)).apply(np.zeros((1, 12, 500)), 500)


def test_records_are_read_at_the_rate_that_the_steps_want(cohort, specs):
    rows = np.array([0, 100])  # recorded at 500 Hz, and only at 100 Hz
    for name, spec in specs.items():
        assert spec.source_fs == {"ked": 100, "ecg-jepa": 250, "st-mem": 250, "ecg-cpc": 240}.get(name, 500)
        wanted = [100, 100] if name == "ked" else [500, 100]
        assert spec.source_rates(cohort, rows).tolist() == wanted
    mixed = specs["ecg-fm"].windows(cohort, rows)
    assert mixed.shape == (2, 2, 12, 2500)
    alone = specs["ecg-fm"].windows(cohort, rows[1:])
    np.testing.assert_array_equal(mixed[1:], alone)


# --- records with padding, and shorter than a window


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """400 Hz, stored in rows of 4,096 samples of which 2,000 to 4,096 are the record's; other samples are a trap."""
    n_valid, start = np.array([4096, 2920, 4000, 2920, 2000, 4000]), np.array([0, 588, 48, 0, 1000, 96])
    rng = np.random.default_rng(5)
    x = rng.normal(0, 300, (6, 12, 4096)).astype(np.int16)
    x[1, 3, 588 : 588 + 2920] = 77  # constant where it is valid: a lead that was not recorded
    table = pd.DataFrame(
        {"patient_id": range(6), "fold": 1, "age": 50.0, "age_over_89": False, "sex": "male", "labels": [["NORM"]] * 6}
        | {"start": start, "n_valid": n_valid, "n_flat_leads": 0, "clipped_share": 0.0}
    )
    statements = pd.DataFrame({"description": ["normal"]}, index=["NORM"])
    none = pd.DataFrame({"record_id": [], "reason": []})
    out = tmp_path_factory.mktemp("exams") / "store"
    about = {"name": "exams", "title": "", "source": "", "license": "", "manifest": ""}
    write_store(out, table, none, statements, about, {400: (np.ones(6, bool), [x])})
    return Cohort.open(out)


@pytest.mark.parametrize("name", REFERENCE)
def test_short_records_are_fed_what_scipy_makes_of_their_valid_samples(exams, specs, name):
    spec, rows = specs[name], np.array([5, 1, 4, 2, 3, 0])
    together = spec.windows(exams, rows)
    for mine, row in zip(together, rows, strict=True):
        start, n = exams.records.loc[row, ["start", "n_valid"]]
        record = exams.signals(np.array([row]), 400)[..., start : start + n]
        k = spec.count(round(4096 * spec.source_fs / 400), round(spec.source_fs * spec.seconds))
        assert len(mine) == k
        np.testing.assert_array_equal(mine, spec.apply(record, 400, n_windows=k)[0])
        np.testing.assert_array_equal(mine[:1], spec.read(exams, np.array([row])))
    np.testing.assert_array_equal(spec.windows(exams, rows[2:3])[0], together[2], "whatever shares the batch")


@pytest.mark.parametrize("name", ["ecgfounder", "clef-small", "merl-resnet18", "st-mem", "weimann-jepa-xs", "ked"])
def test_zeros_follow_the_normalised_record(specs, name):
    """The samples before the zeros are those of a spec whose window is as long as the record."""
    spec, x = specs[name], np.random.default_rng(0).normal(0, 0.3, (3, 12, 2920))
    made = spec.apply(x, 400)
    exact = replace(spec, seconds=7.3, n_windows=1).apply(x, 400)
    n = exact.shape[-1]
    assert n == round(7.3 * spec.fs)
    np.testing.assert_array_equal(made[:, :1, :, :n], exact)
    assert (made[..., n:] == 0).all()
    assert made.shape[-1] == round(spec.fs * spec.seconds)


def test_zeros_come_before_the_step_that_flattens(specs):
    x = np.random.default_rng(0).normal(0, 0.3, (1, 12, 1200))  # 3 s for windows of 5 s
    half = replace(specs["hubert-ecg-small"], window=()).apply
    with pytest.raises(CureError, match="end at 500 Hz"):
        half(x, 400)
    flat = specs["hubert-ecg-small"].apply(x, 400)[0, 0]
    scaled = replace(specs["hubert-ecg-small"], window=(), fs=500).apply(x, 400)[0, 0]
    assert (scaled[:, 1500:] == 0).all()
    np.testing.assert_allclose(flat, sps.decimate(scaled.ravel().astype(float), 5), atol=1e-5)


def test_which_records_are_padded(exams, specs):
    rows = np.arange(6)
    assert specs["ecgfounder"].padded(exams, rows).tolist() == [False, True, False, True, True, False]
    assert specs["ecg-fm"].padded(exams, rows).tolist() == [False] * 6
    assert specs["st-mem"].padded(exams, rows[:2]).tolist() == [False, True]


@pytest.mark.parametrize("name", REFERENCE)
def test_the_share_of_a_window_that_is_filled_is_where_its_zeros_begin(exams, specs, name):
    spec, rows = specs[name], np.array([5, 1, 4, 2, 3, 0])
    share = spec.filled(exams, rows)
    x = spec.windows(exams, rows)
    assert share.shape == x.shape[:2]
    assert (share > 0).all()
    np.testing.assert_array_equal((share < 1).any(axis=1), spec.padded(exams, rows))
    if x.ndim == 3:
        return  # leads flattened one after the other: no window of theirs is padded here
    for window, part in zip(x.reshape(-1, *x.shape[2:]), share.ravel(), strict=True):
        valid = np.flatnonzero(window.any(axis=0))[-1] + 1
        assert abs(valid - part * window.shape[-1]) <= 1.5


def test_a_higher_rate_is_cut_at_the_same_times(cohort):
    moved = cohort.records.assign(start=100, n_valid=700)  # counted at 100 Hz, the lowest
    inside = Cohort(cohort.folder, moved, cohort.statements, cohort.info)
    spec = InputSpec(fs=500, seconds=7)
    np.testing.assert_array_equal(
        spec.read(inside, np.array([2]))[0], cohort.signals(np.array([2]), 500)[0][:, 500:4000]
    )
