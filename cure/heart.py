"""The heart and the torso of the simulator: average physiology, and what each condition changes in it.

A beat is thirteen waves (P, QRS, ST, T; late ones for bundle branch blocks). A wave is a direction in dipole space
(Frank axes: x left, y feet, z back; mV) and a bump in time. The torso starts from Dower's matrix (Dower, Machado,
Osborne, Clin Cardiol 1980). The dipoles were fitted to class averages of PTB-XL (Wagner et al., Sci Data 2020); what a
condition changes follows the usual criteria (Surawicz et al., AHA/ACCF/HRS recommendations, Circulation 2009).
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")

#: Columns of a patients table and their values in a healthy adult; severities run from 0 (absent) to 1 (severe).
HEALTHY: dict[str, float | str] = {
    "rate_bpm": 68.0, "hrv": 0.03, "premature": 0.0,  # premature: share of early (atrial) beats
    "pr_ms": 155.0, "p_ms": 104.0, "p_gain": 1.0, "qrs_ms": 90.0, "qtc_ms": 418.0, "t_gain": 1.0,
    "voltage": 1.0, "axis_deg": 0.0, "yaw_deg": 0.0,  # turned from the average heart (+ right, + clockwise)
    "variety": 1.0,  # spread of wave shapes and electrode places between patients; 0: everyone is average
    "rbbb": 0.0, "lbbb": 0.0, "mi_anterior": 0.0, "mi_inferior": 0.0, "mi_lateral": 0.0, "mi_acute": 0.0,
    "st_depression": 0.0, "t_inversion": 0.0, "lvh": 0.0, "afib": 0.0,
    "muscle_mv": 0.003, "wander_mv": 0.035, "hum_mv": 0.002,  # root mean square per electrode
    "fault": "",  # loose:V3, flat:V5 (any chest electrode; loose also limb) or swap:RA-LA
}  # fmt: skip
RANGES = {
    "rate_bpm": (20, 220),
    "pr_ms": (80, 400),
    "p_ms": (60, 160),
    "qrs_ms": (60, 130),
    "qtc_ms": (300, 600),
}
SEVERITIES = (
    "rbbb", "lbbb", "mi_anterior", "mi_inferior", "mi_lateral", "mi_acute",
    "st_depression", "t_inversion", "lvh", "afib", "premature",
)  # fmt: skip

# Leads I, II, V1..V6 from the dipole: Dower's, with I, II, V1, V2 and V6 moved towards PTB-XL's mean normal beat.
TORSO = np.array([
    [0.56, 0.08, -0.07], [0.30, 0.94, -0.12], [-0.50, 0.20, -0.72], [-0.10, 0.24, -1.72],
    [0.882, 0.098, -1.277], [1.213, 0.127, -0.601], [1.125, 0.127, -0.086], [0.80, 0.18, 0.11],
])  # fmt: skip

WAVES = ("p_right", "p_left", "q", "r1", "r2", "s1", "s2", "rv", "lv1", "lv2", "lv3", "st", "t")
P, VENTRICLE, NORMAL_QRS, LATE_RV, LATE_LV, ST, T = (
    slice(0, 2), slice(2, 11), slice(2, 7), 7, slice(8, 11), 11, 12,
)  # fmt: skip
# Dipole of each wave in the average healthy heart (mV); bundle branch waves: their dipole in complete block.
DIPOLES = np.array([
    [0.045, 0.060, -0.030], [0.070, 0.070, 0.035],
    [-0.06, -0.02, -0.20], [0.34, 0.10, -0.24], [1.26, 0.64, 0.26], [0.33, 0.29, 0.68], [-0.15, -0.04, 0.28],
    [-0.48, -0.15, -0.52],
    [0.74, 0.24, 0.65], [0.68, 0.16, 1.50], [0.76, -0.14, 0.68],
    [-0.01, 0.00, -0.06], [0.265, 0.145, -0.21],
])  # fmt: skip
# Centre and half-width of each ventricular wave as a share of its QRS (q..s2: the normal part; others: the whole).
QRS_CENTRE = np.array([0.17, 0.32, 0.45, 0.58, 0.74, 0.66, 0.26, 0.50, 0.74])
QRS_HALF = np.array([0.17, 0.19, 0.20, 0.25, 0.26, 0.33, 0.26, 0.34, 0.26])
RBBB_MS, LBBB_MS, LVH_MS = 52.0, 64.0, 12.0  # how much a complete block or severe hypertrophy widens the QRS
T_PEAK = 0.72  # of the QT interval

# What infarction takes from q, r1, r2, s1, s2 (mV at severity 1), from T, and adds to ST when acute.
INFARCTS: dict[str, tuple[list[list[float]], list[float], list[float]]] = {
    "mi_anterior": (
        [[0.04, 0.0, 0.40], [-0.14, 0.0, 0.70], [-0.55, -0.22, 0.45], [-0.10, -0.15, 0.15], [0, 0, 0]],
        [-0.20, -0.08, 0.26], [0.06, 0.0, -0.20],
    ),
    "mi_inferior": (
        [[0.0, -0.16, 0.05], [0.0, -0.42, 0.10], [-0.25, -0.55, 0.0], [0.0, -0.20, 0.0], [0, 0, 0]],
        [-0.12, -0.22, 0.05], [-0.05, 0.20, 0.04],
    ),
    "mi_lateral": (
        [[-0.18, 0.0, 0.0], [-0.50, 0.0, 0.0], [-0.55, 0.0, 0.0], [-0.10, 0.05, 0.0], [0, 0, 0]],
        [-0.34, 0.0, 0.04], [0.17, -0.06, 0.0],
    ),
}  # fmt: skip


def checked(patients: pd.DataFrame) -> pd.DataFrame:
    """Return every column of `HEALTHY` for the patients, after checks (ValueError names the culprit)."""
    unknown = sorted(set(patients.columns) - set(HEALTHY) - {"patient"})
    if unknown:
        raise ValueError(f"unknown column(s) {unknown} in patients; known: {sorted(HEALTHY)} and 'patient'")
    if not len(patients) or not patients.index.is_unique:
        raise ValueError("patients needs at least one row and a unique index: it names the records")
    people = pd.DataFrame({name: patients.get(name, value) for name, value in HEALTHY.items()}, index=patients.index)
    limits = RANGES | dict.fromkeys(SEVERITIES, (0, 1))
    for name, (low, high) in limits.items():
        bad = people.index[~people[name].between(low, high)]
        if len(bad):
            raise ValueError(f"{name}={people[name][bad[0]]} of record {bad[0]} is outside {low}..{high}")
    faults = {""} | {f"loose:{e}" for e in ELECTRODES} | {f"flat:{e}" for e in ELECTRODES[3:]} | {"swap:RA-LA"}
    bad = people.index[~people["fault"].isin(faults)]
    if len(bad):
        raise ValueError(f"fault={people['fault'][bad[0]]!r} of record {bad[0]} is none of {sorted(faults)}")
    return people


def qrs_ms(people: pd.DataFrame) -> Floats:
    """Whole QRS duration `(n,)` ms: the normal one plus what blocks and hypertrophy add."""
    extra = RBBB_MS * people["rbbb"] + LBBB_MS * people["lbbb"] + LVH_MS * people["lvh"]
    return (people["qrs_ms"] + extra).to_numpy()


def torso() -> Floats:
    """The torso as electrode potentials `(9, 3)`, with the Wilson terminal at zero."""
    one, two = TORSO[0], TORSO[1]
    return np.stack([-(one + two) / 3, (2 * one - two) / 3, (2 * two - one) / 3, *TORSO[2:]])


def rotation(axis: Floats, yaw: Floats) -> Floats:
    """Rotations `(n, 3, 3)`: `axis` degrees in the frontal plane, then `yaw` degrees about the long axis."""
    zero, one = np.zeros_like(axis), np.ones_like(axis)
    c, s = np.cos(np.radians(axis)), np.sin(np.radians(axis))
    frontal = np.array([[c, -s, zero], [s, c, zero], [zero, zero, one]])
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    transverse = np.array([[c, zero, -s], [zero, one, zero], [s, zero, c]])
    return np.einsum("ijn,jkn->nik", transverse, frontal)


def dipoles(people: pd.DataFrame) -> Floats:
    """Dipole of every wave `(n, 13, 3)` mV: the healthy heart, changed by each condition in turn."""
    s = {name: people[name].to_numpy()[:, None] for name in (*SEVERITIES, "p_gain", "t_gain")}
    d = np.repeat(DIPOLES[None], len(people), axis=0)
    d[:, P] *= (s["p_gain"] * (s["afib"] == 0))[:, None]
    d[:, T] *= s["t_gain"]

    # Hypertrophy: more muscle to the left and back, then strain (ST and T turn away from the QRS).
    d[:, 3:7] *= 1 + s["lvh"][:, None] * np.array([0.45, 0.35, 1.15])
    strain = s["lvh"] ** 2
    d[:, ST] += strain * [-0.13, -0.06, -0.05]
    d[:, T] += strain * [-0.46, -0.19, -0.06]
    for name, (qrs, t, st) in INFARCTS.items():
        d[:, NORMAL_QRS] += s[name][:, None] * np.array(qrs)
        d[:, T] += s[name] * np.array(t)
        d[:, ST] += s[name] * s["mi_acute"] * np.array(st)
    d[:, ST] += s["st_depression"] * [-0.13, -0.09, 0.09]
    d[:, T] *= 1 - s["t_inversion"] * np.array([1.6, 1.5, 1.0])

    # Right bundle: the late right ventricle is unopposed. Left bundle: septum and left ventricle are late.
    right, left = s["rbbb"], s["lbbb"]
    d[:, 4:7, 2] *= 1 - 0.75 * right
    d[:, 4, :2] *= 1 - 0.25 * right
    d[:, T] += right * [-0.09, -0.05, 0.34]
    d[:, ST] += right * [0.0, 0.0, 0.05]
    d[:, LATE_RV] *= right
    taken = np.minimum(1.0, 1.25 * left)
    d[:, NORMAL_QRS] *= 1 - taken[:, None]
    d[:, LATE_LV] *= (left * (1 + 0.4 * s["lvh"]))[:, None]
    d[:, ST] = d[:, ST] * (1 - left) + left * [-0.13, -0.04, -0.26]
    d[:, T] = d[:, T] * (1 - left) + left * [-0.17, -0.02, -0.44]
    return d


def timing(people: pd.DataFrame, qt: Floats) -> tuple[Floats, Floats, Floats]:
    """Centre and half-widths `(n, 13)` s of every wave relative to its QRS onset."""
    total, normal, p = (a / 1000 for a in (qrs_ms(people), people["qrs_ms"].to_numpy(), people["p_ms"].to_numpy()))
    centre, rise = np.empty((2, len(people), len(WAVES)))
    centre[:, P] = -people[["pr_ms"]].to_numpy() / 1000 + p[:, None] * [0.42, 0.58]
    rise[:, P] = p[:, None] * 0.42
    complex_ = np.repeat(total[:, None], 9, axis=1)
    complex_[:, :5] = normal[:, None]
    centre[:, VENTRICLE], rise[:, VENTRICLE] = complex_ * QRS_CENTRE, complex_ * QRS_HALF
    fall = rise.copy()
    centre[:, ST], rise[:, ST], fall[:, ST] = total + 0.045, 0.045 + 0.3 * total, 0.62 * qt
    centre[:, T], rise[:, T], fall[:, T] = T_PEAK * qt, 0.39 * qt, (1 - T_PEAK) * qt
    return centre, rise, fall
