"""Writes docs/triton-kernels.md: compiles every Triton kernel and looks at what came of it.

python -m tools.triton_report     needs triton, and no GPU; takes some minutes
"""

import sys
from pathlib import Path

# For the cases that are compiled, which the tests hold.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from triton_report.page import PAGE, current_page

if __name__ == "__main__":
    PAGE.write_text(current_page())
    print(f"wrote {PAGE}")
