"""What builds, checks and reports on the package; run as ``python -m tools.NAME`` from the root."""
