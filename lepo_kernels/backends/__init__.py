"""The backends: each folder holds one kernel file per op family."""
