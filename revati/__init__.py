"""Revati: emulate LLM serving on GPUs you do not have, and search for the deployment to buy."""

__version__ = "0.1.0"
