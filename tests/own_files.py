"""ECGs in files of every format that `cure embed` reads, written with each format's own library."""

import json

import numpy as np
import pandas as pd
import wfdb

from cure.signals import LEADS
from cure.simulate import simulate

#: Millivolts are whole multiples of this, which every format holds exactly.
STEP_MV = 0.001
PER_MV = {"mV": 1.0, "uV": 1e3, "V": 1e-3}


def ecgs(n=1, fs=250, seconds=10, seed=0):
    """(n, 12, n_samples) float64 mV of simulated ECGs in whole microvolts, whose limb leads obey Einthoven exactly."""
    hearts = pd.DataFrame({"patient": np.arange(n)})
    x = simulate(hearts, fs=fs, seconds=seconds, rng=np.random.default_rng(seed)).signals
    x = np.rint(x.astype(float) / (2 * STEP_MV)) * 2 * STEP_MV
    i, ii = x[:, 0], x[:, 1]
    x[:, 2:6] = np.stack([ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2], axis=1)
    return np.rint(x / STEP_MV) * STEP_MV


def write_wfdb(path, mv, fs, names=LEADS, unit="mV", gain=None):
    """`path` without extension; the gain is in counts per unit."""
    gain = gain or 1 / (STEP_MV * PER_MV[unit])
    digital = np.rint(mv * PER_MV[unit] * gain).astype(np.int64).T
    n = len(names)
    how = {"units": [unit] * n, "sig_name": list(names), "fmt": ["16"] * n, "adc_gain": [gain] * n, "baseline": [0] * n}
    wfdb.wrsamp(path.name, fs=fs, d_signal=digital, write_dir=str(path.parent), **how)
    return path.with_suffix(".hea")


def write_edf(path, mv, fs, names=LEADS, unit="uV"):
    import edfio

    top = 32 * PER_MV[unit]
    how = {"physical_dimension": unit, "physical_range": (-top, top), "digital_range": (-32000, 32000)}
    signals = [edfio.EdfSignal(row * PER_MV[unit], fs, label=name, **how) for name, row in zip(names, mv, strict=True)]
    edfio.Edf(signals).write(path)
    return path


def write_csv(path, mv, fs=None, names=LEADS, sep=",", decimal="."):
    table = pd.DataFrame(mv.T, columns=list(names))
    if fs:
        table.insert(0, "time_s", np.arange(len(table)) / fs)
    table.to_csv(path, index=False, sep=sep, decimal=decimal)
    return path


def write_npz(path, mv, fs, names=LEADS, unit="mV"):
    np.savez(path, signal=mv * PER_MV[unit], fs=fs, unit=unit, leads=np.array(names))
    return path


def write_npy(path, mv, **about):
    """With a JSON file beside it, if there is something to say."""
    np.save(path, mv)
    if about:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


#: Codes of the twelve leads in MDC (ISO/IEEE 11073-10101).
MDC = dict(zip(LEADS, ["2:1", "2:2", "2:61", "2:62", "2:63", "2:64", *(f"2:{i}" for i in range(3, 9))], strict=True))


def write_dicom(path, mv, fs, names=LEADS, unit="uV", sensitivity=1.0, median_beat=True):
    """A 12-lead ECG object, with a median beat behind the recording as devices write it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

    def code(value, scheme, meaning):
        one = Dataset()
        one.CodeValue, one.CodingSchemeDesignator, one.CodeMeaning = value, scheme, meaning
        return [one]

    def group(x, originality):
        one = Dataset()
        one.WaveformOriginality, one.SamplingFrequency = originality, fs
        one.NumberOfWaveformChannels, one.NumberOfWaveformSamples = x.shape
        one.WaveformBitsAllocated, one.WaveformSampleInterpretation = 16, "SS"
        one.ChannelDefinitionSequence = []
        for name in names:
            channel = Dataset()
            channel.ChannelSourceSequence = code(MDC.get(name, name), "MDC", f"Lead {name}")
            if sensitivity:
                channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = sensitivity, 1
                channel.ChannelBaseline = 0
                channel.ChannelSensitivityUnitsSequence = code(unit, "UCUM", unit)
            channel.WaveformBitsStored = 16
            one.ChannelDefinitionSequence.append(channel)
        counts = np.rint(x * PER_MV[unit] / (sensitivity or 1)).astype("<i2")
        one.WaveformData = counts.T.tobytes()
        return one

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = TwelveLeadECGWaveformStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality = "ECG"
    dataset.WaveformSequence = [group(mv[:, :fs], "DERIVED")] if median_beat else []
    dataset.WaveformSequence.append(group(mv, "ORIGINAL"))
    dataset.save_as(path, enforce_file_format=True)
    return path
