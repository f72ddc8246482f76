"""Public ops, one file per family."""
