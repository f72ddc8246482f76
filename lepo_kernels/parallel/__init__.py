"""Ops on heads and tables of which each rank of a process group holds a part of the vocabulary."""
