"""Read-only questions to the driver's tool."""

from __future__ import annotations

import subprocess


def query_gpu(field_names: str) -> str:
    """``nvidia-smi``'s answer about the first GPU; empty where it is missing."""
    command = ["nvidia-smi", f"--query-gpu={field_names}", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
