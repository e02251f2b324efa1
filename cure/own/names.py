"""What files call leads and units."""

import re

from cure.cohorts.wfdb_record import lead_index
from cure.signals import LEADS

#: Millivolts per unit.
UNITS = {"nV": 1e-6, "uV": 1e-3, "mV": 1.0, "V": 1e3}
#: What `--unit` takes besides: counts of a converter, with `--gain` counts per mV.
ADC = "adc"

_SPELLINGS = {
    "nV": ("nv", "nanovolt"),
    "uV": ("uv", "microv", "microvolt"),
    "mV": ("mv", "millivolt"),
    "V": ("v", "volt"),
    ADC: ("adc", "adu", "count", "lsb", "digital"),
}
_UNIT = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
#: A unit at the end of a column's name: `I (mV)`, `I [uV]`, `I_mV`.
_SUFFIX = re.compile(r"^(.*?)[\s_]*(?:\(([^()]*)\)|\[([^\[\]]*)\]|[\s_]([nuµμm]?V|adc))$", re.IGNORECASE)
#: ISO/IEEE 11073-10101 (MDC) and SCP-ECG give a lead the same number: 1 is I, 61 is III, 62 to 64 are the augmented.
_NUMBERS = {1: 0, 2: 1, 61: 2, 62: 3, 63: 4, 64: 5} | {number: number + 3 for number in range(3, 9)}
#: `2:62` (partition and code), `131134` (both in one number), and SCP-ECG's `5.6.3-9-62`.
_PARTITION, _ECG_LEADS = 2, 2 * 65536
_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d+)|(1310\d\d|1311\d\d)")


def lead_of(name: str) -> int | None:
    """Position in `LEADS` of a channel's name or code; None for any other channel.

    Names are those of `cure.cohorts.wfdb_record.lead_index` (any case; prefixes such as `Lead`, `ECG`, `MDC_ECG_LEAD_`;
    `C1` for V1, `DI` for I), also with a remark in brackets (`Lead I (Einthoven)`) or a unit behind them (`I_mV`).
    Codes are those of MDC (`2:1`, `131073`) and SCP-ECG (`5.6.3-9-1`).
    """
    code = _CODE.fullmatch(name.strip())
    if code:
        return _NUMBERS.get(int(code[1]) if code[1] else int(code[2]) - _ECG_LEADS)
    found = lead_index(name)
    return lead_index(split_unit(name)[0]) if found is None else found


def split_unit(name: str) -> tuple[str, str | None]:
    """Name and unit of a column called `I (mV)` or `I_uV`; the unit is None where it names none."""
    found = _SUFFIX.match(name.strip())
    if not found:
        return name, None
    return found[1], next((unit_of(part) for part in found.groups()[1:] if part), None)


def unit_of(text: str) -> str | None:
    """One of `UNITS`, or `adc`, from any usual spelling; None for what is no voltage."""
    plain = text.strip().lower().replace("µ", "u").replace("μ", "u")
    return _UNIT.get(plain, _UNIT.get(plain.removesuffix("s")))


def shown(leads: list[int]) -> str:
    """Names of leads by position, as tables give them: `I,II,V1`."""
    return ",".join(LEADS[lead] for lead in leads)
