"""Packages that settings of `TrainingArguments` ask for, looked for before anything is loaded.

transformers finds out while the trainer is made or when the first update is due, which is after the
model was loaded and evaluated.
"""

from transformers import Trainer

from lepo_kernels import extras
from lepo_kernels.cli.errors import UsageError
from lepo_kernels.trainer.config import LEPOConfig

# What ``report_to`` names -> the modules of which it takes one.
REPORTERS = {
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def check_requirements(args: LEPOConfig) -> None:
    """Check that what reports the run and what optimizes are installed.

    Raises:
        UsageError: naming the setting and the package.
    """
    for name in args.report_to if isinstance(args.report_to, list) else [args.report_to]:
        modules = REPORTERS.get(str(name), ())
        if modules and not any(map(extras.is_here, modules)):
            package = modules[0].replace("_", "-")
            raise UsageError(
                f"report_to: {name} needs the package {package}, which is not installed; run: "
                f"pip install {package}"
            )
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        # Some optimizers ask for the model here, which is for later.
        if "install" in str(error):
            raise UsageError(f"optim: {error}") from error
