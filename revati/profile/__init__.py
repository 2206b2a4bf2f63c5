"""Measure kernels on a machine with a GPU into ``kernel_db`` (``python -m revati.profile --help``)."""
