"""Serving engines under emulation: thin plug-ins for unmodified wheels."""
