"""What is left behind: few files at the top, everything else in one archive."""

import shutil
import tarfile
from pathlib import Path

# With the results, no more than eight.
AT_HAND = ("gpu_run.json", "report/report.md", "report/summary.png", "report/roofline.png")
ARCHIVE = "rest.tar.gz"


def collect(work: Path, out: Path) -> None:
    """Copy what one looks at first to ``out``, and pack all of ``work``; no file is ever half."""
    for name in AT_HAND:
        if (work / name).is_file():
            fresh = out / "copying.new"
            shutil.copyfile(work / name, fresh)
            fresh.replace(out / Path(name).name)
    fresh = out / "packing.new"
    with tarfile.open(fresh, "w:gz") as archive:
        archive.add(work, arcname="gpu_run")
    fresh.replace(out / ARCHIVE)
