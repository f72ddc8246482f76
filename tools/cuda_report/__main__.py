"""Writes docs/cuda-kernels.md: compiles every kernel of csrc/cuda and looks at what came of it.

python -m tools.cuda_report     needs nvcc, cuobjdump and nvdisasm, and no GPU
"""

from tools.cuda_report.page import PAGE, current_page

if __name__ == "__main__":
    PAGE.write_text(current_page())
    print(f"wrote {PAGE}")
