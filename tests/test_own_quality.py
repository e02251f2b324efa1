"""Quality flags: each fault that is put in is found, and nothing is found in what has none."""

import os
from pathlib import Path

import numpy as np
import pytest
from own_files import ecgs

from cure.own import quality
from cure.own.find import find
from cure.own.quality import FLAGS
from cure.own.readers import load
from cure.own.record import Given, Record
from cure.signals import LEADS

ALL = tuple(range(12))
V6 = LEADS.index("V6")
PTBXL = Path(os.environ.get("CURE_PTBXL_DIR", Path(__file__).parents[2] / "shared/data/ptb-xl-subset"))


@pytest.fixture(scope="module", params=[100, 250, 500])
def clean(request):
    """Eight ECGs without fault, (8, 12, n_samples) float32 mV, and their rate."""
    return ecgs(8, request.param).astype(np.float32), request.param


def flags(x, fs, present=None, needed=ALL):
    """Flags of some records, a set each."""
    present = np.ones(12, bool) if present is None else present
    records = [Record(one.astype(np.float32), fs, present, np.zeros(12, bool)) for one in x]
    quality.flag(records, needed)
    return [set(one.quality) for one in records]


def only(name, found):
    assert name in FLAGS
    assert found == [{name}] * len(found), found


def test_a_clean_record_has_no_flag(clean):
    x, fs = clean
    assert flags(x, fs) == [set()] * len(x)


def test_flat(clean):
    x, fs = clean
    x = x.copy()
    x[:, V6, 2 * fs : 5 * fs] = x[:, V6, 2 * fs, None]  # an electrode came off for three seconds
    only("flat", flags(x, fs))
    x[:, V6, 3 * fs + fs // 2 :] = clean[0][:, V6, 3 * fs + fs // 2 :]  # for one and a half
    assert flags(x, fs) == [set()] * len(x)


def test_clipped(clean):
    x, fs = clean
    x = x.copy()
    lead = np.ptp(x, axis=-1).mean(axis=0).argmax()
    for one in x:
        low, high = np.quantile(one[lead], [0.02, 0.98])
        one[lead] = one[lead].clip(low, high)
    only("clipped", flags(x, fs))


def test_stuck_at_the_rail_is_clipped(clean):
    x, fs = clean
    x = x.copy()
    x[:, V6, fs : fs + fs // 4] = x[:, V6].max(axis=-1, keepdims=True) + 1
    only("clipped", flags(x, fs))


def test_noise_and_drift_are_noisy(clean):
    x, fs = clean
    noise = np.random.default_rng(0).normal(size=(len(x), x.shape[-1]))
    muscle = x.copy()
    muscle[:, V6] += 0.2 * noise
    only("noisy", flags(muscle, fs))
    burst = x.copy()
    burst[:, V6, 4 * fs : 6 * fs] += 0.2 * noise[:, 4 * fs : 6 * fs]
    only("noisy", flags(burst, fs))
    quiet = x.copy()
    quiet[:, V6] += 0.01 * noise
    assert flags(quiet, fs) == [set()] * len(x)
    drift = x.copy()
    drift[:, V6] += np.linspace(0, 3.5, x.shape[-1], dtype=np.float32)
    only("noisy", flags(drift, fs))


def swapped(x, pair):
    """The record with two limb electrodes in each other's place; chest leads stay, their reference is symmetric."""
    one, two, three = x[:, 0], x[:, 1], x[:, 2]
    one, two = {
        "LA-RA": (-one, three),
        "RA-LL": (-three, -two),
        "LA-LL": (two, one),
        "RA-RL": (-three, 0 * two),
        "LA-RL": (two, two),
    }[pair]
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=1)
    return np.concatenate([limbs, x[:, 6:]], axis=1)


@pytest.mark.parametrize("pair", ["LA-RA", "RA-LL", "RA-RL", "LA-RL"])
def test_swapped_limb_leads(clean, pair):
    x, fs = clean
    # Where the right leg's electrode takes an arm's place, what remains in one lead is noise.
    noise = np.random.default_rng(0).normal(0, 0.004, (len(x), 12, x.shape[-1]))
    found = flags(swapped(x, pair) + noise, fs)
    assert all("swapped-limb-leads" in one for one in found), found
    assert all(one <= {"swapped-limb-leads", "inconsistent-limb-leads", "flat"} for one in found)


def test_what_a_swap_cannot_be_told_from(clean):
    """Left arm for left leg leaves both leads likely, and without V6 a mirrored lead I is just negative."""
    x, fs = clean
    assert not any("swapped-limb-leads" in one for one in flags(swapped(x, "LA-LL"), fs))
    present = np.ones(12, bool)
    present[V6] = False
    assert not any("swapped-limb-leads" in one for one in flags(swapped(x, "LA-RA"), fs, present, (0, 1)))


def test_limb_leads_that_do_not_fit(clean):
    x, fs = clean
    y = x.copy()
    y[:, [1, 2]] = y[:, [2, 1]]  # names in a wrong order
    assert all("inconsistent-limb-leads" in one for one in flags(y, fs))
    y = x + np.linspace(0, 0.1, 12, dtype=np.float32)[:, None]  # offsets of an amplifier are no fault
    assert flags(y, fs) == [set()] * len(x)


def test_short_and_missing(clean):
    x, fs = clean
    only("short", flags(x[..., : 4 * fs], fs))
    present = np.ones(12, bool)
    present[V6] = False
    only("missing-leads", flags(x, fs, present))
    assert flags(x, fs, present, needed=(0, 1)) == [set()] * len(x), "the encoder does not read V6"


def test_faults_of_leads_that_are_not_read_do_not_count(clean):
    x, fs = clean
    x = x.copy()
    x[:, V6] += np.random.default_rng(0).normal(0, 0.3, x[:, V6].shape)
    assert flags(x, fs, needed=(1,)) == [set()] * len(x)


def test_records_of_several_lengths_keep_their_own_flags():
    good, fs = ecgs(1, 250)[0].astype(np.float32), 250
    bad = swapped(good[None], "LA-RA")[0]
    records = [Record(one, fs, np.ones(12, bool), np.zeros(12, bool)) for one in (good, bad[:, :1000], bad, good)]
    quality.flag(records, ALL)
    assert [one.quality for one in records] == [[], ["swapped-limb-leads", "short"], ["swapped-limb-leads"], []]


@pytest.mark.skipif(not (PTBXL / "records100").is_dir(), reason="no PTB-XL records at ../shared or CURE_PTBXL_DIR")
def test_rates_on_real_records():
    """As docs/own-ecgs.md says of all of them; here of the first 120."""
    records = load(find([PTBXL / "records100" / "00000"])[:120], Given(), ALL)
    assert all(isinstance(one, Record) for one in records)
    x = np.stack([one.x for one in records])
    asis = [set(one.quality) for one in records]
    assert np.mean([bool(one) for one in asis]) < 0.08
    assert np.mean(["swapped-limb-leads" in one for one in asis]) < 0.02
    for pair in ("LA-RA", "RA-LL"):
        assert quality.swapped(swapped(x, pair), 100, np.ones((len(x), 12), bool)).mean() > 0.85
