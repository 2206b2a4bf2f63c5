# Usual commands; `just` lists them.

python := ".venv/bin/python"

_default:
    @just --list

# Create .venv with the engine and the development tools
setup:
    python3 -m venv .venv
    {{python}} -m pip install -q -e '.[vllm,dev]'

# Quick tests; pass arguments on to pytest
test *arguments="-m 'not slow and not matrix'":
    {{python}} -m pytest {{arguments}}

# Tests that start engines or sweeps, two files at a time
test-engines *arguments="-n 2 --dist loadfile":
    {{python}} -m pytest -m 'slow and not matrix' {{arguments}}

# Lint and type-check
lint:
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy

# Put code into shape
format:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# Search for deployments of a model
sweep model="llama13b" *arguments="":
    {{python}} -m revati.sweep +model={{model}} {{arguments}}

# Compare emulated with measured runs again: emulate all, rewrite validation/
validate *arguments="jobs=2":
    {{python}} -m revati.validate out=validation {{arguments}}

# Predict the measured runs by the baselines (aiconfigurator in an environment of its own)
baselines:
    PYTHONPATH=. {{python}} validation/baselines/roofline.py
    PYTHONPATH=. uv run --no-project --python 3.11 --with-requirements validation/baselines/aiconfigurator.txt \
        python validation/baselines/aiconfigurator_estimate.py

# What CI runs
ci:
    .ci/run
