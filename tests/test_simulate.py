"""The simulator: lead algebra, closed forms, visible conditions, determinism."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cure import heart, simulate
from cure.signals import LEADS

FS = 500


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clean(n: int = 1, fs: int = FS, **columns) -> tuple[np.ndarray, simulate.Plan]:
    """Noise-free records of the average anatomy, and their plan."""
    table = pd.DataFrame({"variety": 0.0} | columns, index=pd.RangeIndex(n))
    planned = simulate.plan(table, seconds=10, rng=rng())
    return simulate.render(planned, slice(None), fs=fs, rng=rng(1), noise=False), planned


def lead(signals: np.ndarray, name: str) -> np.ndarray:
    return signals[:, LEADS.index(name)]


def windows(signals: np.ndarray, frame: pd.DataFrame, start: str, end: str, fs: int = FS) -> list[np.ndarray]:
    """Pieces `(12, samples)` of the first record between two columns, whole beats only."""
    inside = frame[(frame[start] >= 0) & (frame[end] <= 10) & (frame["ecg_id"] == 0)]
    return [signals[0][:, round(a * fs) : round(b * fs) + 1] for a, b in zip(inside[start], inside[end], strict=True)]


def test_shape_units_and_lead_algebra_with_noise_and_faults():
    table = pd.DataFrame({"fault": ["", "loose:RA", "flat:V4", "swap:RA-LA"], "afib": [0, 0.5, 0, 0], "hum_mv": 0.02})
    x = simulate.simulate(table, fs=FS, seconds=10, rng=rng()).signals
    assert x.shape == (4, 12, 5000) and x.dtype == np.float32 and np.isfinite(x).all()
    one, two = lead(x, "I"), lead(x, "II")
    np.testing.assert_array_equal(lead(x, "III"), two - one)
    np.testing.assert_array_equal(lead(x, "aVR"), -(one + two) / 2)
    np.testing.assert_array_equal(lead(x, "aVL"), one - two / 2)
    np.testing.assert_array_equal(lead(x, "aVF"), two - one / 2)
    assert 0.3 < np.abs(x[0]).max() < 6
    assert np.abs(lead(x, "V4")[2]).max() < 1e-6, "a flat electrode sits at the Wilson terminal"


def test_electrodes_to_leads_against_the_textbook():
    e = rng().standard_normal((3, 9, 50)).astype(np.float32)
    x = simulate.to_leads(e)
    np.testing.assert_allclose(lead(x, "I"), e[:, 1] - e[:, 0], rtol=1e-6)
    np.testing.assert_allclose(lead(x, "aVF"), e[:, 2] - (e[:, 0] + e[:, 1]) / 2, atol=1e-6)
    np.testing.assert_allclose(lead(x, "V3"), e[:, 5] - e[:, :3].mean(1), atol=1e-6)


def test_a_swap_of_the_arms_inverts_lead_one_and_exchanges_two_and_three():
    table = pd.DataFrame(
        {"fault": ["", "swap:RA-LA"], "patient": [1, 1], "muscle_mv": 0.0, "wander_mv": 0.0, "hum_mv": 0.0}
    )
    planned = simulate.plan(table, seconds=10, rng=rng())
    for name in ("mixing", "centre", "rise", "fall", "onset", "qt", "breath_hz", "breath_phase", "breathing"):
        getattr(planned, name)[1] = getattr(planned, name)[0]
    x = simulate.render(planned, slice(None), fs=FS, rng=rng())
    np.testing.assert_allclose(x[1, 0], -x[0, 0], atol=1e-6)
    np.testing.assert_allclose(x[1, 1], x[0, 2], atol=1e-6)
    np.testing.assert_allclose(x[1, 6:], x[0, 6:], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(35, 160), pr=st.floats(110, 320), qrs=st.floats(70, 120), rbbb=st.floats(0, 1), lbbb=st.floats(0, 1)
)  # fmt: skip
def test_beats_are_as_planted(rate, pr, qrs, rbbb, lbbb):
    table = pd.DataFrame([{"rate_bpm": rate, "pr_ms": pr, "qrs_ms": qrs, "rbbb": rbbb, "lbbb": lbbb, "hrv": 0.0}])
    beats = simulate.find_beats(simulate.plan(table, seconds=10, rng=rng()))
    total = qrs + rbbb * heart.RBBB_MS + lbbb * heart.LBBB_MS
    np.testing.assert_allclose(beats["rr"].dropna(), 60 / rate, rtol=1e-9)
    np.testing.assert_allclose(beats["qrs_start"] - beats["p_start"], pr / 1000, rtol=1e-9)
    np.testing.assert_allclose(beats["qrs_end"] - beats["qrs_start"], total / 1000, rtol=1e-9)
    assert (beats["t_end"] > beats["t_peak"]).all() and (beats["t_peak"] > beats["qrs_start"]).all()
    assert (beats["t_end"] - beats["qrs_start"] <= 0.92 * 60 / rate + 1e-9).all(), "T ends before the next QRS"


def test_the_signal_is_where_the_beats_say():
    x, planned = clean(rate_bpm=60.0, hrv=0.0, pr_ms=200.0)
    beats = simulate.find_beats(planned)
    p, qrs = (
        np.stack([w[1, :30] for w in windows(x, beats, a, b)])
        for a, b in (("p_start", "p_end"), ("qrs_start", "qrs_end"))
    )
    pause = windows(x, beats.assign(a=beats["p_end"] + 0.004, b=beats["qrs_start"] - 0.004), "a", "b")
    before_p = windows(x, beats.assign(a=beats["previous_t_end"] + 0.004, b=beats["p_start"] - 0.004), "a", "b")
    assert p.max() > 0.05 and qrs.max() > 0.5
    # Bumps end exactly: nothing between P and QRS, nothing between T and P.
    assert max(np.abs(w).max() for w in pause) < 1e-6
    assert max(np.abs(w).max() for w in before_p) < 1e-6


def test_normal_amplitudes_are_physiological():
    x, planned = clean(n=64)
    peak, trough = x.max(axis=2).mean(0), x.min(axis=2).mean(0)
    r = dict(zip(LEADS, peak, strict=True))
    assert 0.4 < r["I"] < 1.1 and 0.6 < r["II"] < 1.5 and 1.0 < r["V5"] < 2.0
    assert r["V1"] < r["V2"] < r["V3"] < r["V4"], "R grows from V1 to V4"
    assert -1.6 < trough[LEADS.index("V1")] < -0.5 and trough[LEADS.index("V6")] > -0.3
    assert (planned.qrs * 1000 == 90).all() and ((planned.axis_deg > 15) & (planned.axis_deg < 75)).all()
    beats = windows(x, simulate.find_beats(planned), "p_start", "p_end")
    assert 0.08 < np.mean([w[1].max() for w in beats]) < 0.2


def test_sampling_rates_agree():
    (fast, _), (slow, _) = clean(fs=500), clean(fs=100)
    np.testing.assert_allclose(fast[:, :, ::5], slow, atol=1e-4)


def test_atrial_fibrillation_has_no_p_and_irregular_beats():
    n = 40
    (sinus, plan_sinus), (fib, plan_fib) = clean(n, hrv=0.03), clean(n, afib=0.8)
    rr = [np.diff(p.onset[:, :9], axis=1) for p in (plan_sinus, plan_fib)]
    cv = [np.median(v.std(axis=1) / v.mean(axis=1)) for v in rr]
    assert cv[1] > 4 * cv[0] and cv[0] < 0.05
    assert simulate.find_beats(plan_fib)["p_start"].isna().all()

    def before_qrs(x: np.ndarray, planned: simulate.Plan) -> float:
        """Mean of lead II, averaged over beats, where the P wave is in sinus rhythm."""
        clock = np.concatenate([x[i, 1, max(k - 80, 0) : max(k - 80, 0) + 55] for i in range(n)
                                for k in [round(o * FS) for o in planned.onset[i] if 0.6 < o < 9]])  # fmt: skip
        return float(clock.reshape(-1, 55).mean(axis=0).max())

    quiet = [before_qrs(*pair) for pair in ((sinus, plan_sinus), (fib, plan_fib))]
    assert quiet[0] > 0.08 and quiet[1] < 0.04


def area(x: np.ndarray, planned: simulate.Plan, name: str, start: float, end: float) -> float:
    """Mean of a lead over the QRS between two shares of its duration."""
    beats = simulate.find_beats(planned)
    length = beats["qrs_end"] - beats["qrs_start"]
    part = beats.assign(a=beats["qrs_start"] + start * length, b=beats["qrs_start"] + end * length)
    return float(np.mean([w[LEADS.index(name)].mean() for w in windows(x, part, "a", "b")]))


@pytest.mark.parametrize(
    ("condition", "name", "start", "end", "sign"),
    [
        ({"rbbb": 1.0}, "V1", 0.5, 0.9, +1), ({"rbbb": 1.0}, "I", 0.6, 1.0, -1), ({"rbbb": 1.0}, "V6", 0.6, 1.0, -1),
        ({"lbbb": 1.0}, "V6", 0.1, 0.9, +1), ({"lbbb": 1.0}, "I", 0.1, 0.9, +1), ({"lbbb": 1.0}, "V1", 0.1, 0.9, -1),
        ({"mi_anterior": 1.0}, "V2", 0.05, 0.4, -1), ({"mi_anterior": 1.0}, "V3", 0.05, 0.4, -1),
        ({"mi_inferior": 1.0}, "III", 0.05, 0.4, -1), ({"mi_inferior": 1.0}, "aVF", 0.05, 0.4, -1),
        ({"mi_lateral": 1.0}, "I", 0.05, 0.35, -1), ({"mi_lateral": 1.0}, "aVL", 0.05, 0.35, -1),
    ],
)  # fmt: skip
def test_conditions_change_the_right_part_of_the_right_lead(condition, name, start, end, sign):
    x, planned = clean(**condition)
    assert sign * area(x, planned, name, start, end) > 0.03
    if "rbbb" in condition or "lbbb" in condition:
        assert planned.qrs[0] >= 0.120


def test_strain_ischaemia_and_voltage():
    def at_t(**columns: float) -> np.ndarray:
        x, planned = clean(**columns)
        return np.mean([w[:, 0] for w in windows(x, simulate.find_beats(planned), "t_peak", "t_end")], axis=0)

    v5 = LEADS.index("V5")
    healthy = at_t()[v5]
    assert healthy > 0.2 and at_t(lvh=1.0)[v5] < 0 and at_t(t_inversion=1.0)[v5] < 0 and at_t(lbbb=1.0)[v5] < 0
    assert clean(lvh=0.8)[0].max() > 1.2 * clean()[0].max()
    x, planned = clean(st_depression=1.0)
    edges = simulate.find_beats(planned).assign(j=lambda b: b["qrs_end"] + 0.02, k=lambda b: b["qrs_end"] + 0.06)
    assert np.mean([w[v5].mean() for w in windows(x, edges, "j", "k")]) < -0.08


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31))
def test_same_seed_same_arrays(seed):
    table = pd.DataFrame({"rate_bpm": [50.0, 90.0, 70.0], "afib": [0.0, 0.5, 0.0], "fault": ["", "", "loose:V2"]})
    a, b = (simulate.simulate(table, fs=100, seconds=4, rng=rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(a.signals, b.signals)
    pd.testing.assert_frame_equal(a.truth, b.truth)
    pd.testing.assert_frame_equal(a.beats, b.beats)


def test_records_of_one_patient_share_an_anatomy():
    table = pd.DataFrame({"patient": [7, 7, 8]})
    mixing = simulate.plan(table, seconds=10, rng=rng()).mixing
    np.testing.assert_array_equal(mixing[0], mixing[1])
    assert np.abs(mixing[0] - mixing[2]).max() > 0.05


def test_noise_has_the_planned_size():
    table = pd.DataFrame({"voltage": [0.0] * 60, "muscle_mv": 0.01, "wander_mv": 0.05, "hum_mv": 0.0})
    x = simulate.simulate(table, fs=FS, seconds=10, rng=rng()).signals
    fast = np.diff(x, axis=2).std()
    assert 0.004 < fast < 0.03 and 0.03 < np.median(x.std(axis=2)) < 0.15
    hum = simulate.simulate(table.assign(hum_mv=0.05), fs=FS, seconds=10, rng=rng()).signals
    power = [np.abs(np.fft.rfft(v, axis=2)[:, :, 500]).mean() for v in (x, hum)]
    assert power[1] > 5 * power[0], "50 Hz is bin 500 of ten seconds"


def test_truth_says_what_was_planted_and_nothing_else():
    table = pd.DataFrame(
        {
            "pr_ms": [150.0, 240.0, 150.0, 240.0],
            "mi_inferior": [0.0, 0.0, 0.8, 0.0],
            "afib": [0, 0, 0, 0.5],
            "rate_bpm": 70.0,
        },
        index=[11, 12, 13, 14],
    )
    planned = simulate.plan(table, seconds=10, rng=rng())
    truth, beats = simulate.find_truth(planned), simulate.find_beats(planned)
    assert truth.groupby("ecg_id")["condition"].unique().map(list).to_dict() == {
        12: ["1AVB"],
        13: ["IMI"],
        14: ["AFIB"],
    }
    assert (truth["end"] > truth["start"]).all() and truth["start"].min() >= 0 and truth["end"].max() <= 10
    pr = truth[(truth["condition"] == "1AVB") & (truth["start"] > 0) & (truth["end"] < 10)]
    np.testing.assert_allclose(pr["end"] - pr["start"], 0.24, rtol=1e-6)
    assert set(pr["lead"]) == set(LEADS) and set(pr.loc[pr["strength"] == 1, "lead"]) == {"II"}
    infarct = truth[truth["condition"] == "IMI"]
    assert set(infarct["lead"]) == {"II", "III", "aVF"} and set(infarct["wave"]) == {"early_qrs", "st_t"}
    assert set(infarct["beat"]) <= set(beats.loc[beats["ecg_id"] == 13, "beat"])
    assert not truth.duplicated(["ecg_id", "condition", "wave", "lead", "beat"]).any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"heart_rate": [60]}, "heart_rate"), ({"rate_bpm": [400.0]}, "rate_bpm=400.0"), ({"afib": [1.5]}, "afib=1.5"),
        ({"pr_ms": [np.nan]}, "pr_ms"), ({"fault": ["loose:V9"]}, "loose:V9"),
    ],
)  # fmt: skip
def test_bad_patients_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        simulate.plan(pd.DataFrame(columns), seconds=10, rng=rng())


def test_too_low_a_rate_and_no_patients():
    with pytest.raises(ValueError, match="fs=50"):
        simulate.simulate(pd.DataFrame({"rate_bpm": [60.0]}), fs=50, seconds=10, rng=rng())
    with pytest.raises(ValueError, match="at least one row"):
        simulate.plan(pd.DataFrame({"rate_bpm": []}), seconds=10, rng=rng())
