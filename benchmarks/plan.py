"""What a run measures: the device, and the models, rows and dtypes that fit it."""

from dataclasses import dataclass

import torch

from benchmarks.shapes import MODELS, Model

# A decode step of one prompt's group of samples, or of a server's batch.
_ROLLOUT_ROWS = {"cpu": 32, "cuda": 128}
# A batch of scored steps; on the CPU so few that the default run ends within ten minutes.
_TRAINING_ROWS = {"cpu": 256, "cuda": 8192}
_MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class Plan:
    """What the options ask for; the families build their cases from it.

    Attributes:
        models: None takes a default for the device: all on CUDA, small ones on the CPU.
        rows: of every case; None takes a default for the device and the kind of work.
        dtypes: of every case; None takes a default for the device.
        memory: bytes that one case may fill.
    """

    device: torch.device
    memory: int
    models: tuple[Model, ...] | None = None
    rows: int | None = None
    dtypes: tuple[torch.dtype, ...] | None = None

    @property
    def _kind(self) -> str:
        return "cuda" if self.device.type == "cuda" else "cpu"

    def light_models(self) -> tuple[Model, ...]:
        """For cases that take milliseconds."""
        return self._models("SmolLM2-135M", "Qwen2.5-3B")

    def heavy_models(self) -> tuple[Model, ...]:
        """For cases that a CPU spends a second on."""
        return self._models("SmolLM2-135M")

    def _models(self, *on_cpu: str) -> tuple[Model, ...]:
        if self.models is not None:
            return self.models
        if self._kind == "cuda":
            return tuple(MODELS.values())
        return tuple(MODELS[name] for name in on_cpu)

    def rollout_rows(self) -> int:
        return self.rows or _ROLLOUT_ROWS[self._kind]

    def training_rows(self, bytes_per_row: int) -> int:
        """As many as the default has, halved until they fit; rows that were asked for stay."""
        if self.rows is not None:
            return self.rows
        rows = _TRAINING_ROWS[self._kind]
        while rows > 1 and rows * bytes_per_row > self.memory:
            rows //= 2
        return rows

    def step_dtypes(self) -> tuple[torch.dtype, ...]:
        """Of logits and tables in a rollout."""
        return self.dtypes or ((torch.bfloat16,) if self._kind == "cuda" else (torch.float32,))

    def product_dtypes(self) -> tuple[torch.dtype, ...]:
        """Of hidden states and the head in training."""
        both = (torch.float32, torch.bfloat16)
        return self.dtypes or ((torch.bfloat16,) if self._kind == "cuda" else both)


def memory_of(device: torch.device) -> int:
    """Bytes that one case may fill: a share of what the device has free."""
    if device.type == "cuda":
        return int(_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(_MEMORY_SHARE * _free_host_memory())


def _free_host_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30
    return int(found.split()[1]) << 10
