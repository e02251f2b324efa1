"""Reading a record of any format: what the file says in a `Raw`, then twelve leads in mV.

The libraries are wfdb, edfio, pydicom, pandas and numpy. edfio and pydicom come with `pip install -e '.[records]'`.
Nothing is unpickled.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import wfdb

from cure.cohorts.wfdb_record import Header, UnusableError
from cure.own import quality
from cure.own.arrays import read_csv, read_numpy
from cure.own.find import Item
from cure.own.names import lead_of
from cure.own.record import Given, Raw, Record, standard

_MESSAGE = 200
#: Signals of more bytes are read in part only.
_LARGE_BYTES = 4_000_000


def load(items: list[Item], given: Given, needed: tuple[int, ...]) -> list[Record | str]:
    """Read some records and look at their quality.

    Parameters
    ----------
    items : list of Item
    given : Given
    needed : tuple of int
        Positions in `LEADS` of the leads that the encoder reads: the others are not looked at.

    Returns
    -------
    list of Record or str
        In the order of `items`; the reason where one cannot be used.
    """
    found = [_load(item, given) for item in items]
    quality.flag([one for one in found if isinstance(one, Record)], needed)
    return found


def _load(item: Item, given: Given) -> Record | str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of what does not concern the signal, such as dates
            return standard(_READERS[item.format](item, given), given)
    except UnusableError as error:
        return str(error)
    except FileNotFoundError as error:
        return f"missing file {Path(str(error.filename)).name}"
    except Exception as error:
        # Whatever a library raises for a damaged file: it is this record's fault and never stops the others.
        said = " ".join(str(error).split())[:_MESSAGE]
        return f"unreadable or damaged ({type(error).__name__}: {said})"


def _read_wfdb(item: Item, given: Given) -> Raw:
    path, raw = item.path.with_suffix(""), Header.read(item.path)
    end = None
    if sum((item.path.parent / name).stat().st_size for name in set(raw.files) - {"~"}) > _LARGE_BYTES:
        # Only here: wfdb takes longer to parse a header than to read ten seconds.
        header = wfdb.rdheader(str(path))
        longest = int(given.max_seconds * header.fs) + 1
        end = longest if header.sig_len is not None and header.sig_len > longest else None
    record = wfdb.rdrecord(str(path), sampto=end, physical=False, smooth_frames=False)
    names = [name or "" for name in record.sig_name or []]
    leads = [i for i, name in enumerate(names) if lead_of(name) is not None]
    channels = leads or list(range(len(names)))
    frame = {record.samps_per_frame[i] for i in channels}
    if len(frame) > 1:
        raise UnusableError("its leads differ in sampling rate")
    if any(raw.gains[i] == 0 for i in channels):
        raise UnusableError("no gain in the header: amplitudes are not calibrated")
    # The sum is over the whole record; some writers put 0 for "not computed".
    if not end and record.checksum and any(record.checksum):
        pairs = zip(record.e_d_signal, record.checksum, strict=True)
        if any((np.sum(samples, dtype=np.int64) - told) % 65536 for samples, told in pairs if told is not None):
            raise UnusableError("samples do not match the header's checksum")
    physical = record.dac(expanded=True)
    values, units = np.stack([physical[i] for i in channels]), [raw.units[i] for i in channels]
    return Raw(values, [names[i] for i in channels], units, float(record.fs * min(frame)), longer=end is not None)


def _read_edf(item: Item, given: Given) -> Raw:
    edfio = _library("edfio", "EDF")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        edf = edfio.read_edf(item.path, header_encoding="latin-1")
    if any("truncated" in str(one.message) or "Updating header" in str(one.message) for one in said):
        raise UnusableError("truncated: it holds less than its header says")
    if edf.reserved.startswith("EDF+D"):
        raise UnusableError("an interrupted recording (EDF+D): write it as one piece (EDF+C)")
    leads = [signal for signal in edf.signals if lead_of(signal.label) is not None]
    signals: Any = leads or list(edf.signals)
    if not signals:
        raise UnusableError("it holds no signals")
    if len({signal.sampling_frequency for signal in signals}) > 1:
        raise UnusableError("its leads differ in sampling rate")
    if any(not np.diff(range_)[0] for one in signals for range_ in (one.physical_range, one.digital_range)):
        raise UnusableError("a range in its header is empty: amplitudes are not calibrated")
    longer = edf.duration > given.max_seconds
    values = [signal.get_data_slice(0, given.max_seconds) if longer else signal.data for signal in signals]
    units = [signal.physical_dimension for signal in signals]
    fs = float(signals[0].sampling_frequency)
    return Raw(np.stack(values), [signal.label for signal in signals], units, fs, longer=longer)


def _read_dicom(item: Item, given: Given) -> Raw:
    pydicom = _library("pydicom", "DICOM")
    dataset = pydicom.dcmread(item.path)
    groups = list(dataset.get("WaveformSequence", []))
    if not groups:
        raise UnusableError("no waveform in it")
    # Beside the recording there may be a median beat, which is derived; and leads may be spread over several groups.
    channels = [[_channel(one) for one in group.get("ChannelDefinitionSequence", [])] for group in groups]
    worth = [
        (
            group.get("WaveformOriginality") != "DERIVED",
            sum(lead_of(name) is not None for name, _ in known),
            int(group.get("NumberOfWaveformSamples", 0)),
        )
        for group, known in zip(groups, channels, strict=True)
    ]
    best = max(range(len(groups)), key=worth.__getitem__)
    group = groups[best]
    counts = pydicom.waveforms.multiplex_array(dataset, best).astype(float)
    if "WaveformPaddingValue" in group:
        padding = np.frombuffer(group.WaveformPaddingValue, f"<i{group.WaveformBitsAllocated // 8}")[0]
        counts[counts == padding] = np.nan
    if len(channels[best]) != counts.shape[1]:
        raise UnusableError("its channels are not described")
    scaled = [_physical(one) for one in group.ChannelDefinitionSequence]
    values = np.stack([counts[:, i] * factor + zero for i, (factor, zero) in enumerate(scaled)])
    names, units = zip(*channels[best], strict=True)
    return Raw(values, list(names), list(units), float(group.SamplingFrequency))


def _channel(definition: Any) -> tuple[str, str]:
    """Name and unit of a DICOM channel; without a sensitivity its samples are counts."""
    sources, units = definition.get("ChannelSourceSequence"), definition.get("ChannelSensitivityUnitsSequence")
    name = str(definition.get("ChannelLabel", ""))
    if sources:
        code, meaning = str(sources[0].get("CodeValue", "")), str(sources[0].get("CodeMeaning", ""))
        name = next((text for text in (code, meaning) if lead_of(text) is not None), name or meaning or code)
    if "ChannelSensitivity" not in definition:
        return name, "adc"
    return name, str(units[0].get("CodeValue", "")) if units else ""


def _physical(definition: Any) -> tuple[float, float]:
    """Factor and offset from counts to the unit of a DICOM channel (PS3.3, C.10.9.1.4.2)."""
    if "ChannelSensitivity" not in definition:
        return 1.0, 0.0
    factor = float(definition.ChannelSensitivity) * float(definition.get("ChannelSensitivityCorrectionFactor", 1))
    return factor, float(definition.get("ChannelBaseline", 0) or 0)


def _library(name: str, what: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise UnusableError(f"reading {what} needs {name}: pip install -e '.[records]'") from error


_READERS: dict[str, Callable[[Item, Given], Raw]] = {
    "wfdb": _read_wfdb,
    "edf": _read_edf,
    "dicom": _read_dicom,
    "csv": read_csv,
    "numpy": read_numpy,
}
