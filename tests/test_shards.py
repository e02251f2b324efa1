import numpy as np
import pytest

from cure import shards
from cure.shards import compute_shards, fingerprint


def square(rows):
    return {"y": rows.astype(float) ** 2}


def test_shards_cover_all_rows_in_order_whatever_the_number_of_workers(tmp_path):
    results = []
    for n_jobs in (1, 2):
        files = compute_shards(tmp_path / str(n_jobs), 23, 5, square, desc="", n_jobs=n_jobs)
        results.append(np.concatenate([np.load(file)["y"] for file in files]))
    assert results[0].tolist() == [i**2 for i in range(23)]
    assert results[0].tolist() == results[1].tolist()


def test_an_interrupted_job_computes_only_what_is_missing(tmp_path):
    seen = []

    def fails_at_ten(rows):
        if 10 in rows and len(seen) < 3:
            seen.append("interrupted")
            raise KeyboardInterrupt
        seen.append(rows[0])
        return square(rows)

    with pytest.raises(KeyboardInterrupt):
        compute_shards(tmp_path, 20, 5, fails_at_ten, desc="")
    assert seen == [0, 5, "interrupted"]
    assert not list(tmp_path.glob("*.part"))
    compute_shards(tmp_path, 20, 5, fails_at_ten, desc="")
    assert seen == [0, 5, "interrupted", 10, 15]


def test_fingerprints_tell_jobs_apart():
    assert fingerprint("a", 1) == fingerprint("a", 1)
    assert fingerprint("a", 1) != fingerprint("a", 2)


def test_shards_made_before_an_edit_or_an_update_are_not_taken_up(project, monkeypatch):
    before = fingerprint("job")
    shards._code.cache_clear()
    (project / "runtime.lock").write_text("torch==9\n")
    after = fingerprint("job")
    shards._code.cache_clear()
    monkeypatch.setattr(shards, "__file__", str(project / "cure" / "shards.py"))
    (project / "cure" / "embed.py").write_text("# edited\n")
    assert len({before, after, fingerprint("job")}) == 3
    shards._code.cache_clear()
