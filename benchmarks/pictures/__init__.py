"""The pictures, a file for each kind; ``benchmarks.plots`` says which of them a run gets."""
