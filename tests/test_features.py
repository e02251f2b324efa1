"""Features against ECGs whose intervals, axes and amplitudes are known, and against PTB-XL's own labels."""

import ast
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cure.beats import median_beats
from cure.features import ecg_features, unmeasurable
from cure.signals import LEADS

#: Weights of the chest leads V1..V6 for each wave of the synthetic beat.
CHEST = {
    "p": [0.5, 0.7, 0.7, 0.7, 0.6, 0.6],
    "q": [0.0, 0.0, 0.0, -0.3, -0.5, -0.5],
    "r": [0.2, 0.4, 0.7, 1.1, 1.2, 1.0],
    "s": [-1.0, -1.3, -0.9, -0.5, -0.2, -0.1],
    "t": [-0.2, 0.8, 0.9, 0.8, 0.7, 0.5],
}


def ecg(
    fs=500,
    seconds=10.0,
    rate=70.0,
    pr=160.0,
    qrs=96.0,
    qt=380.0,
    axis=50.0,
    p_mv=0.15,
    start=0.45,
    rr=None,
    terminal_v1=0.0,
):
    """One (12, samples) record in mV: a raised-cosine P, Q, R, S and T per beat, with known beginnings and ends."""
    time = np.arange(round(seconds * fs)) / fs
    onsets = start + (np.arange(0, seconds, 60 / rate) if rr is None else np.cumsum([0, *rr]))
    waves = (  # name, begin and end relative to the QRS onset in ms, mV, frontal direction
        ("p", -pr, -pr + 100, p_mv, 50.0),
        ("q", 0, 0.3 * qrs, 0.3, axis),
        ("r", 0.15 * qrs, 0.75 * qrs, 1.0, axis),
        ("s", 0.65 * qrs, qrs, 0.4, axis),
        ("t", qt - 170, qt, 0.35, 40.0),
    )
    x = np.zeros((12, len(time)))
    for name, begin, end, height, angle in waves:
        phase = (time - onsets[:, None] - begin / 1000) / ((end - begin) / 1000)
        shape = np.where((phase > 0) & (phase < 1), height * (0.5 - 0.5 * np.cos(2 * np.pi * phase)), 0).sum(0)
        sign = -1 if name in "qs" else 1
        one, two, three = (sign * np.cos(np.radians(angle - lead)) for lead in (0, 60, 120))
        limb = [one, two, three, -(one + two) / 2, (one - three) / 2, (two + three) / 2]
        weights = np.array(limb + CHEST[name])
        if name == "s":
            weights[6] += terminal_v1
        x += weights[:, None] * shape
    return x.astype(np.float32)


def measure(*records, fs=500, **kwargs):
    return ecg_features(np.stack(records), fs, **kwargs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rate=st.floats(45, 105),
    pr=st.floats(125, 230),
    qrs=st.floats(90, 160),
    qt=st.floats(360, 420),
    fs=st.sampled_from([100, 250, 400, 500, 1000]),
)
def test_known_intervals_are_found(rate, pr, qrs, qt, fs):
    assume(60000 / rate - pr > qt + 20)  # a P wave inside the T wave has no onset to find
    found = measure(ecg(fs, rate=rate, pr=pr, qrs=qrs, qt=qt), fs=fs).iloc[0]
    assert found.heart_rate_bpm == pytest.approx(rate, abs=1)
    assert found.pr_ms == pytest.approx(pr, abs=20)
    assert found.qrs_ms == pytest.approx(qrs, abs=20)
    assert found.qt_ms == pytest.approx(qt, abs=25)  # the tangent meets zero 0.09 of a raised cosine's width early
    assert found.qtc_ms == pytest.approx(found.qt_ms / np.cbrt(60 / found.heart_rate_bpm), rel=1e-3)
    assert found.p_present == 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(axis=st.floats(-170, 170), fs=st.sampled_from([100, 500]))
def test_known_axis_is_found(axis, fs):
    found = measure(ecg(fs, axis=axis), fs=fs).iloc[0]
    assert abs((found.qrs_axis_deg - axis + 180) % 360 - 180) < 10
    assert found.p_axis_deg == pytest.approx(50, abs=10)
    assert found.t_axis_deg == pytest.approx(40, abs=10)
    assert found.qrs_axis_cos == pytest.approx(np.cos(np.radians(found.qrs_axis_deg)), abs=1e-4)


def test_known_amplitudes_are_found():
    found = measure(ecg(p_mv=0.2)).iloc[0]
    assert found.r_mv_V5 == pytest.approx(1.2, rel=0.1)
    assert found.s_mv_V2 == pytest.approx(0.52, rel=0.15)
    assert found.t_mv_V3 == pytest.approx(0.35 * 0.9, rel=0.1)
    assert found.t_mv_V1 == pytest.approx(-0.35 * 0.2, abs=0.03)
    assert found.p_mv_II == pytest.approx(0.2 * np.cos(np.radians(10)), rel=0.2)
    assert abs(found.st_mv_II) < 0.05
    assert found.sokolow_lyon_mv == pytest.approx(found.s_mv_V1 + max(found.r_mv_V5, found.r_mv_V6), rel=1e-5)
    assert found.cornell_mv == pytest.approx(found.r_mv_aVL + found.s_mv_V3, rel=1e-5)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(gain=st.floats(0.5, 2))
def test_amplitudes_scale_with_gain_and_times_do_not(gain):
    record = ecg()
    before, after = (measure(record * np.float32(g)).iloc[0] for g in (1, gain))
    amplitudes = [c for c in before.index if "_mv" in c and before[c] > 0.1]
    assert len(amplitudes) > 60
    np.testing.assert_allclose(after[amplitudes], before[amplitudes] * gain, rtol=0.02)
    times = ["heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "p_ms", "qrs_axis_deg"]
    np.testing.assert_allclose(after[times], before[times], atol=0.1)


def test_a_shift_in_time_changes_nothing():
    names = ["heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qrs_axis_deg"]
    found = measure(*(ecg(rate=60, start=0.45 + shift) for shift in (0, 0.013, 0.05, 0.2)))[names]
    assert (np.ptp(found.to_numpy(), axis=0) <= 8).all()
    assert np.ptp(found.heart_rate_bpm) < 0.5


def test_both_rates_of_a_record_measure_alike():
    low, high = ecg_features(ecg(100)[None], 100).iloc[0], ecg_features(ecg(500)[None], 500).iloc[0]
    for name, tolerance in {
        "pr_ms": 8,
        "qrs_ms": 8,
        "qt_ms": 8,
        "qrs_axis_deg": 3,
        "r_mv_V5": 0.08,
        "t_mv_V3": 0.02,
    }.items():
        assert low[name] == pytest.approx(high[name], abs=tolerance), name


def test_wander_hum_and_noise_are_withstood():
    rng = np.random.default_rng(0)
    time = np.arange(5000) / 500
    clean = ecg()
    noisy = clean + 0.4 * np.sin(2 * np.pi * 0.15 * time) + 0.1 * np.sin(2 * np.pi * 50 * time)
    noisy = noisy + 0.03 * rng.standard_normal(clean.shape)
    found = measure(clean, noisy.astype(np.float32))
    for name, tolerance in {
        "heart_rate_bpm": 1,
        "pr_ms": 20,
        "qrs_ms": 20,
        "qt_ms": 20,
        "r_mv_V5": 0.1,
        "st_mv_V2": 0.05,
    }.items():
        assert found[name][1] == pytest.approx(found[name][0], abs=tolerance), name
    assert found.noise_mv[1] > found.noise_mv[0]


def test_bundle_branch_blocks_differ_in_their_terminal_force():
    found = measure(ecg(qrs=150, terminal_v1=2.5), ecg(qrs=150, terminal_v1=-0.5))
    assert found.terminal_mv_V1[0] > 0.2 > -0.2 > found.terminal_mv_V1[1]
    assert found.r_peak_ms_V1[0] > 90


def test_fibrillation_has_no_p_wave_and_no_pr_interval():
    rng = np.random.default_rng(1)
    time = np.arange(5000) / 500
    rr = rng.uniform(0.5, 1.1, 11)
    flutter = 0.08 * np.sin(2 * np.pi * 6.3 * time + 2 * np.sin(2 * np.pi * 0.4 * time))
    weights = np.array([0.3, 0.6, 0.3, -0.4, 0.1, 0.4, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1])[:, None]
    found = measure(ecg(), (ecg(p_mv=0.0, rr=rr) + weights * flutter).astype(np.float32))
    assert found.p_present.tolist() == [1, 0]
    assert np.isnan(found.pr_ms[1]) and found.pr_ms[0] > 0
    assert found.rr_irregularity[1] > 5 * found.rr_irregularity[0] + 0.05
    assert found.f_wave_mv_V1[1] > 3 * found.f_wave_mv_V1[0]


def test_a_premature_wide_beat_stays_out_of_the_median():
    rr = [0.8] * 5 + [0.45, 1.15] + [0.8] * 3
    plain, wide = ecg(rr=rr), ecg(rr=rr, qrs=180, axis=-120)
    at = round((0.45 + 0.8 * 5 + 0.45) * 500)
    record = plain.copy()
    record[:, at - 10 : at + 300] = 2 * wide[:, at - 10 : at + 300]
    beats = median_beats(np.stack([ecg(rate=75), record]), 500)
    before = beats.r_sample - 5
    np.testing.assert_allclose(beats.beats[0, :, before:], beats.beats[1, :, before:], atol=0.12)
    assert beats.rhythm.premature_fraction[1] > 0 and beats.rhythm.odd_beat_fraction[1] > 0
    assert beats.rhythm.heart_rate_bpm[1] == pytest.approx(75, abs=1)


def test_the_median_beat_is_the_beat():
    beats = median_beats(ecg(500)[None], 500)
    assert beats.beats.dtype == np.float32 and beats.beats.shape[:2] == (1, 12)
    v5 = beats.beats[0, LEADS.index("V5")]
    assert abs(int(v5.argmax()) - beats.r_sample) <= 3
    assert v5.max() == pytest.approx(1.2, rel=0.1)
    assert {"heart_rate_bpm", "rr_sd_ms", "rr_rmssd_ms", "rr_cv"} <= set(beats.rhythm)


def test_unmeasurable_records_are_rows_of_nan_and_disturb_no_other():
    rng = np.random.default_rng(2)
    good = ecg(100)
    flat, silent = np.zeros_like(good), np.full_like(good, np.nan)
    noise = rng.standard_normal((8, *good.shape)).astype(np.float32)
    step = np.where(np.arange(good.shape[1]) > 400, 5.0, 0.0) * np.ones((12, 1), np.float32)
    spike = np.zeros_like(good)
    spike[:, 500] = 3
    bad = [flat, silent, step.astype(np.float32), spike, *noise]
    found = measure(good, *bad, good, fs=100)
    assert unmeasurable(found).tolist() == [False, *[True] * len(bad), False]
    pd.testing.assert_series_equal(found.iloc[0], found.iloc[-1], check_names=False)
    alone = measure(good, fs=100).iloc[0]
    np.testing.assert_allclose(found.iloc[0], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, np.nan, 1.7])
def test_a_missing_lead_is_nan_and_the_rest_is_measured(value):
    record = ecg()
    record[LEADS.index("V2")] = value
    found = measure(record).iloc[0]
    assert found.filter(regex="_V2$").isna().all() and np.isnan(found.qrs_t_angle_deg)
    assert found.filter(regex="_V3$").drop("r_peak_ms_V3", errors="ignore").notna().all()
    assert found.pr_ms == pytest.approx(160, abs=20) and found.qrs_axis_deg == pytest.approx(50, abs=10)


def test_a_record_with_a_gap_is_measured():
    record = ecg()
    record[:, 2000:2500] = np.nan
    found = measure(record).iloc[0]
    assert found.pr_ms == pytest.approx(160, abs=20) and found.qrs_ms == pytest.approx(96, abs=20)


def test_the_values_do_not_depend_on_the_number_of_workers():
    records = np.stack([ecg(100, rate=50 + i % 50, axis=i) for i in range(70)])
    one, two = (ecg_features(records, 100, n_jobs=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert (one.dtypes == np.float32).all() and len(one) == 70 and not unmeasurable(one).any()


def test_no_records_give_an_empty_table_with_the_same_columns():
    empty = ecg_features(np.zeros((0, 12, 1000), np.float32), 100)
    assert len(empty) == 0 and list(empty) == list(measure(ecg(100), fs=100))


@pytest.mark.parametrize(
    ("shape", "fs"), [((3, 8, 1000), 100), ((12, 1000), 100), ((1, 12, 100), 100), ((1, 12, 500), 50)]
)
def test_a_wrong_shape_or_rate_is_named(shape, fs):
    with pytest.raises(ValueError, match=r"\(n, 12, samples\)|need"):
        ecg_features(np.zeros(shape, np.float32), fs)


@pytest.fixture(scope="module")
def ptbxl():
    folder = os.environ.get("CURE_PTBXL_DIR")
    if not folder:
        pytest.skip("CURE_PTBXL_DIR names no copy of PTB-XL")
    import wfdb

    meta = pd.read_csv(Path(folder) / "ptbxl_database.csv")
    meta = meta[[(Path(folder) / f"{name}.hea").exists() for name in meta.filename_lr]].reset_index(drop=True)
    meta["codes"] = [set(ast.literal_eval(codes)) for codes in meta.scp_codes]
    wanted = {"SBRAD", "STACH", "1AVB", "CRBBB", "CLBBB", "AFIB"}
    rare = meta[[bool(codes & wanted) for codes in meta.codes]].groupby(lambda i: i % 2).head(150)
    meta = pd.concat([rare, meta.drop(rare.index).head(200)])
    signals = np.stack([wfdb.rdrecord(str(Path(folder) / name)).p_signal.T for name in meta.filename_lr]).astype(
        np.float32
    )
    return meta.reset_index(drop=True), ecg_features(signals, 100)


def test_ptbxl_labels_agree_with_the_measures(ptbxl):
    meta, found = ptbxl
    assert unmeasurable(found).mean() < 0.01

    def median(name, code):
        return found[name][[code in codes for codes in meta.codes]].median()

    assert median("heart_rate_bpm", "SBRAD") == pytest.approx(48, abs=4)
    assert median("heart_rate_bpm", "STACH") == pytest.approx(109, abs=6)
    assert median("pr_ms", "1AVB") > 200 > 175 > median("pr_ms", "NORM")
    assert min(median("qrs_ms", "CRBBB"), median("qrs_ms", "CLBBB")) > 130 > 105 > median("qrs_ms", "NORM")
    assert median("terminal_mv_V1", "CRBBB") > median("terminal_mv_V1", "CLBBB") > median("terminal_mv_V1", "NORM")
    assert median("p_present", "AFIB") == 0 and median("p_present", "NORM") == 1
    axis = found.qrs_axis_deg.groupby(meta.heart_axis).median()
    assert axis["LAD"] < -15 < axis["MID"] < 80
