"""Which records an analysis of single windows can take."""

import numpy as np

from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.models import InputSpec


def require_whole(spec: InputSpec, cohort: Cohort, stage: str) -> None:
    """Make sure that every record fills an encoder's window from its own first sample on.

    Embedding handles shorter, padded and shifted records. What looks at single moments, or cuts crops, does not: it
    would point at the wrong time, or learn from padding.

    Raises
    ------
    CureError
        Says how many records do not, names the first, and what can be done.
    """
    rate, every = cohort.rates[0], np.arange(len(cohort))
    n_valid = cohort.records["n_valid"].to_numpy()
    length = round(spec.seconds * rate)
    first = {n: spec.starts(int(n), length)[0] for n in np.unique(n_valid)}
    shifted = (cohort.records["start"].to_numpy() > 0) | (np.array([first[n] for n in n_valid]) > 0)
    bad = shifted | spec.padded(cohort, every)
    if bad.any():
        name = cohort.records["record_id"].to_numpy()[bad][0]
        raise CureError(
            f"stage {stage} takes records that fill the {spec.seconds:g} s of an encoder's window from their first "
            f"sample; {bad.sum()} of {len(cohort)} records of cohort '{cohort.name}' do not, the first is {name}. Such "
            "a cohort can be the `external` one of a profile: stages prepare, embed and transfer take it"
        )
