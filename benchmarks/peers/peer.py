"""What is said of a peer, in data: the rows, the tables and their footnotes are made from it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Peer:
    """Another library's function for a part of the work.

    Attributes:
        name: of its row.
        package: what pip calls it.
        module: what Python imports.
        function: calls it; imports it only then.
        computes: what it computes, in words.
        lacks: what it does not do that our op does; empty if nothing.
        devices: types of device it runs on.
        softcap: whether it takes a cap on the logits.
        needs: an attribute that old versions of the module lack.
    """

    name: str
    package: str
    module: str
    function: Callable[..., Any]
    computes: str
    lacks: str
    devices: tuple[str, ...] = ("cuda",)
    softcap: bool = False
    needs: str | None = None

    def why_not(self, device: torch.device) -> str | None:
        """Say why it cannot run on ``device``; None if it can. Imports nothing but torch's own."""
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{self.package} is not installed"
        if device.type not in self.devices:
            return f"{self.package} runs on {' and '.join(self.devices)} alone"
        if self.needs is not None and not hasattr(importlib.import_module(self.module), self.needs):
            return f"this {self.package} has no {self.module}.{self.needs}"
        return None
