"""Writes docs/triton-kernels.md: compiles every Triton kernel and looks at what came of it.

python -m tools.triton_report     needs triton, and no GPU; takes some minutes
"""

from tools.triton_report.page import PAGE, current_page

if __name__ == "__main__":
    PAGE.write_text(current_page())
    print(f"wrote {PAGE}")
