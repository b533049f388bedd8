"""Speed of the MEVF reproduction: questions per second in steps of training, at full size.

``make bench`` runs and prints it; ``extra_info`` has the figures. Beside the released code it is measured when
``MEVF_RELEASED`` names a checkout of that repository (aioz-ai/MICCAI19-MedVQA): both on all cores, in turn, theirs as
one process with all threads, ours as ``make mevf`` runs it, one process for each core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from vqa_core.experiments import mevf

HERE = Path(__file__).parent
FRIENDLY = {  # to page faults, as `make mevf` sets it: memory that is freed is not given back
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
OURS = {"OMP_NUM_THREADS": "1", **FRIENDLY}


def _rate(script: str, *arguments: str, processes: int = 1, **environment: str) -> float:
    """Questions per second that a script prints, summed over processes that run at the same time."""
    command = [sys.executable, str(HERE / script), *arguments]
    clean = {k: v for k, v in os.environ.items() if k not in OURS} | environment
    running = [subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(p.communicate()[0].split()[-1]) for p in running)


@pytest.mark.parametrize("encoders", ["tuned", "frozen", "decoder"])
@pytest.mark.parametrize("fusion", mevf.FUSIONS)
def test_steps_of_training(benchmark, fusion, encoders):
    """One process on one core."""
    rates = []
    benchmark.pedantic(lambda: rates.append(_rate("our_mevf.py", fusion, encoders, "6", **OURS)), rounds=1)
    benchmark.extra_info["questions_per_second"] = round(rates[-1], 1)
    assert rates[-1] > 0


@pytest.mark.skipif("MEVF_RELEASED" not in os.environ, reason="MEVF_RELEASED names no checkout of the released code")
@pytest.mark.parametrize("fusion", mevf.FUSIONS)
def test_beside_the_released_code(benchmark, fusion):
    """Medians of three rounds, in turn: ours is at least three times as fast as the released code as it stands."""
    folder, cores = os.environ["MEVF_RELEASED"], len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}

    def once() -> None:
        for name, rate in {
            "released": lambda: _rate("released_mevf.py", folder, fusion, "4"),
            "released, same allocator": lambda: _rate("released_mevf.py", folder, fusion, "4", **FRIENDLY),
            "ours": lambda: _rate("our_mevf.py", fusion, "tuned", "10", processes=cores, **OURS),
            "ours, frozen": lambda: _rate("our_mevf.py", fusion, "frozen", "30", processes=cores, **OURS),
        }.items():
            rates.setdefault(name, []).append(rate())

    benchmark.pedantic(once, rounds=3)
    found = {name: statistics.median(values) for name, values in rates.items()}
    benchmark.extra_info |= {name: round(value, 1) for name, value in found.items()}
    assert found["ours"] > 3 * found["released"]
