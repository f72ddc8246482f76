"""One command for an hour with a GPU, or eight minutes: checks, benchmarks, a report."""
