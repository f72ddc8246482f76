"""How to resume a training run that ended early."""

import shlex

from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.trainer.checkpoint import last_complete_checkpoint


def how_to_resume(folder: RunFolder) -> str:
    """The command that resumes the run in a folder, or how to have one next time."""
    where = shlex.quote(str(folder.folder))
    if last_complete_checkpoint(folder.folder) is None:
        return (
            "there is no checkpoint yet to resume from (save_strategy and save_steps make them); "
            f"start over with: lepo train --output_dir {where} --overwrite_output_dir"
        )
    return f"resume with: lepo train --output_dir {where} --resume_from_checkpoint latest"
