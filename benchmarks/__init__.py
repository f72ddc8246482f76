"""Benchmarks: what each op costs beside eager torch, other implementations and the bare floor."""
