"""Analyses of single moments refuse records that do not fill a window from their first sample."""

import dataclasses

import numpy as np
import pytest

from cure.errors import CureError
from cure.lengths import require_whole
from cure.models import InputSpec
from cure.models.base import PLAIN


def with_records(cohort, **columns):
    return dataclasses.replace(cohort, records=cohort.records.assign(**columns))


def test_whole_records_pass_also_where_the_window_is_their_first_part(cohort):
    require_whole(PLAIN, cohort, "explain")
    require_whole(InputSpec(fs=100, seconds=4), cohort, "explain")


@pytest.mark.parametrize("column", ["start", "n_valid"])
def test_shifted_and_short_records_are_counted_and_named(cohort, column):
    values = cohort.records[column].to_numpy().copy()
    values[[3, 7]] = 100 if column == "start" else 700
    name = cohort.records["record_id"][3]
    with pytest.raises(CureError, match=f"stage explain takes .* 2 of {len(cohort)} records .* first is {name}"):
        require_whole(PLAIN, with_records(cohort, **{column: values}), "explain")


def test_a_centred_window_would_point_at_the_wrong_time(cohort):
    """Records a little longer than a window have one, cut from their middle."""
    with pytest.raises(CureError, match=f"{len(cohort)} of {len(cohort)} records"):
        require_whole(InputSpec(fs=100, seconds=9.8), cohort, "finetune")
    assert np.all(cohort.records["n_valid"] == 1000)
