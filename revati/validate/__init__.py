"""Emulated against measured runs: errors, the noise of repeats beside them, baselines, rankings, steps."""
