"""Measure runs of a real engine on a real GPU, the truth that emulated runs are compared with."""
