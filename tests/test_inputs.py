"""What each published model is fed, against scipy applied to one record and one lead at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as sps

from cure import models
from cure.errors import CureError
from cure.models.base import InputSpec
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


@given(n=st.integers(1, 40), extra=st.integers(0, 60), least=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_windows_cover_a_record_evenly_from_end_to_end(n, extra, least):
    spec = InputSpec(fs=1, seconds=n, n_windows=least)
    starts = spec.starts(n + extra, n, 1)
    assert starts[0] == 0
    assert starts[-1] == extra
    assert len(starts) == (max(-(-(n + extra) // n), least) if extra else 1)
    assert np.ptp(np.diff(starts)) <= 1 if len(starts) > 1 else True
    assert (np.diff(starts) <= n).all(), "no sample is left out"


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
