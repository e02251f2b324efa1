import numpy as np
import pytest

from cure import beat_attribution as ba
from cure import beats, pointing
from cure.bootstrap import interval, patient_draws
from cure.pointing import MIN_RECORDS
from cure.signals import LEADS

#: A record of 10 s with an R peak each second.
PEAKS = np.arange(0.5, 10, 1.0)


def spikes(n=2, fs=100, seed=0):
    """Records with a narrow QRS at `PEAKS`, of another height in each lead."""
    at = np.arange(10 * fs) / fs
    shape = np.exp(-(((at[:, None] - PEAKS) / 0.015) ** 2)).sum(axis=1)
    height = np.random.default_rng(seed).uniform(0.5, 1.5, (n, 12, 1))
    return (height * shape).astype(np.float32)


def test_a_bin_lies_in_the_middle_of_the_qrs_and_the_window_is_that_of_median_beats():
    assert 0 in ba.MS and (np.diff(ba.MS) == 40).all()
    assert ba.MS[0] - 20 >= beats.TIME_MS[0] and ba.MS[-1] + 20 <= beats.TIME_MS[-1] + 2 * beats.STEP_MS


@pytest.mark.parametrize("fs", [100, 250, 500])
def test_averages_over_beats_are_those_of_a_loop(fs):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 2, 12, 10 * fs))
    record, peak = np.array([0, 0, 2]), np.array([1.0, 4.32, 5.04])
    found = ba.beat_average(values, record, peak, fs)
    assert found.shape == (3, 2, 12, len(ba.MS)) and np.isnan(found[1]).all()
    width = fs // 25
    for i, of in ((0, [1.0, 4.32]), (2, [5.04])):
        for k, ms in enumerate(ba.MS):
            starts = [round((at + ms / 1000) * fs) - width // 2 for at in of]
            wanted = np.mean([values[i, ..., start : start + width].sum(axis=-1) for start in starts], axis=0)
            np.testing.assert_allclose(found[i, ..., k], wanted)


def test_an_attribution_that_follows_the_beats_lands_in_its_bin():
    values = np.zeros((1, 12, 1000))
    for peak in PEAKS:
        values[0, 3, round((peak + 0.2) * 100)] = 1
    record, peak = np.zeros(8, int), PEAKS[1:-1]
    found = ba.beat_average(values, record, peak, 100)[0]
    assert ba.MS[found[3].argmax()] == 200 and found[3].max() == found.sum() == 1


def test_peaks_are_found_and_an_odd_beat_is_left_out():
    x = spikes()
    record, peak = ba.usable_beats(x, 100)
    for i in range(2):
        np.testing.assert_allclose(peak[record == i], PEAKS[(PEAKS > 0.42) & (PEAKS < 9.38)], atol=0.013)
    odd = x.copy()
    odd[0, ::2, 440:460] *= -1  # the beat at 4.5 s points down in every other lead
    record, peak = ba.usable_beats(odd, 100)
    assert not np.any(np.abs(peak[record == 0] - 4.5) < 0.1)
    assert np.any(np.abs(peak[record == 1] - 4.5) < 0.1)
    assert not len(ba.usable_beats(np.zeros((2, 12, 1000), np.float32), 100)[0])


def test_planted_waves_lie_where_they_should_after_averaging(cohort):
    truth = pointing.read_truth(cohort)
    record_id = cohort.records["record_id"].to_numpy()
    rows = np.flatnonzero(np.isin(record_id, truth.loc[truth["condition"] == "CLBBB", "ecg_id"]))
    time, _ = pointing.planted(truth, record_id[rows], "CLBBB", 100, 1000)
    record, peak = ba.usable_beats(cohort.signals(rows, 100), 100)
    inside = ba.beat_average(time.astype(float), record, peak, 100)[:, 0]
    share = np.nanmean(inside, axis=0) / 4
    assert share[np.abs(ba.MS) <= 20].min() > 0.7  # the QRS, around R
    assert share[ba.MS >= 280].max() < 0.2


def test_means_in_draws_are_those_of_repeated_records():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(12, 5))
    values[3, 2] = np.nan
    draws = patient_draws(np.repeat(np.arange(6), 2), 50, rng)
    mean, drawn = ba.band(values, draws)
    np.testing.assert_allclose(mean, np.nanmean(values, axis=0))
    for k in range(50):
        np.testing.assert_allclose(drawn[:, k], np.nanmean(np.repeat(values, draws[k], axis=0), axis=0))
    mean, drawn = ba.band(np.full((12, 1), np.nan), draws)
    assert np.isnan(mean).all() and np.isnan(drawn).all()


def made(n, shift=1.0, seed=3):
    """As many positives as negatives; positives have `shift` more in V1 at 40 ms by method `own`, not by `twin`."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2 * n, 2, 12, len(ba.MS)))
    maps[:n, 0, LEADS.index("V1"), list(ba.MS).index(40)] += shift
    wave = rng.normal(size=(2 * n, 12, 270)).astype(np.float32)
    return ba.BeatMaps(["own", "twin"], maps, wave, np.arange(2 * n) < n, np.arange(2 * n))


def test_differences_between_classes_show_what_was_planted():
    maps = made(40, shift=4.0)
    table = ba.class_table(maps, {"twin"}, 500, 0)
    assert set(zip(table["method"], table["group"], strict=True)) == {
        ("own", ba.POSITIVES),
        ("own", ba.NEGATIVES),
        ("own", ba.DIFFERENCE),
        ("twin", ba.DIFFERENCE),
    }
    assert (table["lo"] <= table["value"]).all() and (table["value"] <= table["hi"]).all()
    wide = table[table["method"] == "own"].pivot(index=["lead", "ms"], columns="group", values="value")
    np.testing.assert_allclose(wide[ba.DIFFERENCE], wide[ba.POSITIVES] - wide[ba.NEGATIVES])
    np.testing.assert_allclose(
        wide[ba.POSITIVES].to_numpy().reshape(12, -1)[sorted(LEADS).index("V1")],
        maps.maps[:40, 0, LEADS.index("V1")].mean(axis=0),
    )
    view = ba.contrast_view(table.assign(task="X"))
    assert view.loc[("X", "own"), ["largest in", "ms from R"]].tolist() == ["V1", 40]
    assert "lo" not in view, "the highest of many bins is a selection"
    assert view.loc[("X", "twin"), "excluding zero"] < 0.15  # noise: 0.05 is expected


def test_intervals_of_a_difference_are_those_of_a_joint_bootstrap():
    maps = made(15)
    table = ba.class_table(maps, {"twin"}, 300, 7)
    draws = patient_draws(maps.patient, 300, np.random.default_rng(7)).astype(float)
    one = maps.maps[:, 1, 0, 0]
    drawn = [np.average(one[:15], weights=w[:15]) - np.average(one[15:], weights=w[15:]) for w in draws]
    row = table[(table["method"] == "twin") & (table["lead"] == "I") & (table["ms"] == ba.MS[0])].iloc[0]
    assert (row["lo"], row["hi"]) == pytest.approx(interval(np.array(drawn))[:2])
    assert row["n"] == row["n_patients"] == 15


def test_few_records_have_no_interval_and_records_without_beats_do_not_count():
    maps = made(MIN_RECORDS)
    assert ba.class_table(maps, set(), 100, 0)["supported"].all()
    maps.maps[0] = np.nan
    table = ba.class_table(maps, set(), 100, 0)
    fewer = table["group"] != ba.NEGATIVES
    assert not table.loc[fewer, "supported"].any() and table.loc[fewer, "lo"].isna().all()
    assert (table.loc[fewer, "n"] == MIN_RECORDS - 1).all() and table.loc[~fewer, "supported"].all()
    maps.maps[:MIN_RECORDS] = np.nan
    assert set(ba.class_table(maps, set(), 100, 0)["group"]) == {ba.NEGATIVES}
    maps.maps[:] = np.nan
    assert ba.class_table(maps, set(), 100, 0).empty


def test_class_waves_leave_missing_leads_out():
    maps = made(2)
    maps.wave[0, 4] = np.nan
    waves = ba.class_waves(maps)
    np.testing.assert_allclose(waves[ba.POSITIVES][4], maps.wave[1, 4])
    np.testing.assert_allclose(waves[ba.NEGATIVES], maps.wave[2:].mean(axis=0), atol=1e-6)
