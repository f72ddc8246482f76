"""Benchmarks: what each op costs beside eager torch, other implementations and the bare floor."""

import time

# Of `time.monotonic`, before torch is imported, which takes seconds: where a command that others
# end counts from.
BEGUN = time.monotonic()
