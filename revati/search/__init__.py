"""Search for good deployments: search space, Ray Tune, Pareto front, ledger and report."""
