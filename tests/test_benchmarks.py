"""Benchmarks still run, at tiny sizes, and memory does not grow with images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "score_floor.py",
            "--images",
            "9",
            "--rounds",
            "1",
            "--patches",
            "20",
            "--features",
            "16",
            "--latents",
            "1500",
        ),
        ("extract_floor.py", "--number", "6", "--rounds", "1", "--model", "test_vit"),
        ("permutation.py", "--images", "12", "--rounds", "1", "--latents", "300", "--permutations", "50"),
    ],
)
def test_they_run(arguments: tuple[str, ...]) -> None:
    script, *options = arguments
    done = subprocess.run([sys.executable, BENCHMARKS / script, *options], check=True, capture_output=True, text=True)
    assert "median of 1" in done.stdout


def test_growth_and_calibration_run() -> None:
    growth = [BENCHMARKS / "permutation.py", "--growth", "--latents", "60", "--images", "8", "--permutations", "20"]
    done = subprocess.run([sys.executable, *growth], check=True, capture_output=True, text=True).stdout
    assert done.count("|\n") == 13
    options = ["--studies", "6", "--latents", "500", "--permutations", "99"]
    command = [sys.executable, BENCHMARKS / "calibration.py", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert done.count(": fine") == 2, done


def test_memory_is_flat() -> None:
    """A quarter of the images' activations would show: 1,000 images of 600 kB."""
    options = ["--memory", "--kind", "relu", "--latents", "256"]
    command = [sys.executable, BENCHMARKS / "score_floor.py", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(done.rsplit("ratio", 1)[1]) < 1.1, done
