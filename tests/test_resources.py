"""What a stage cost, also where its workers outlive their parent."""

import json
import subprocess
import sys

import psutil
import pytest

from cure.resources import measured

#: Starts a worker, waits for the megabytes and the tenths of a second of work it was asked for, and says so.
PARENT = """
import subprocess, sys, time
WORK = "import time; held = bytearray(200_000_000)\\n"
WORK += "while time.process_time() < 0.6: pass\\nprint('done', flush=True); time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE)
print(worker.stdout.readline().decode(), worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("looked", [True, False])
def test_workers_that_outlive_their_parent_are_counted_as_they_were_last_seen(tmp_path, looked):
    with measured("stage", tmp_path) as workers:
        with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "done\n"
            worker = psutil.Process(int(parent.stdout.readline()))
            if looked:
                workers.look(cell=None, cell_index=3)
            parent.kill()
        worker.kill()
    row = json.loads((tmp_path / "stage.json").read_text())
    assert (row["cpu_s"] > 0.5) == looked
    assert (workers.peak_bytes > 200e6) == looked
    assert row["peak_rss_mb"] >= round(workers.peak_bytes / 1e6)


def test_a_failing_block_leaves_no_measurement(tmp_path):
    with pytest.raises(ValueError, match="no"), measured("stage", tmp_path):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
