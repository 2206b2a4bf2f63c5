"""One emulated deployment: what is deployed, how it is run, and what is measured of it."""
