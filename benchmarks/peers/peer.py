"""What is said of a peer, in data: the rows, the tables and their footnotes are made from it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.case import Implementation, dtype_name


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
        dtypes: that it takes; None is all.
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
    dtypes: tuple[torch.dtype, ...] | None = None
    softcap: bool = False
    needs: str | None = None

    def row(
        self,
        run: Callable[["Peer", Any], Any],
        check: Callable[[Any, Any], None],
        dtype: torch.dtype,
        softcap: float | None = None,
    ) -> Implementation:
        """Its row in a case; ``run`` takes the peer and the inputs."""
        return Implementation(
            self.name,
            "other",
            partial(run, self),
            check,
            partial(self.why_not, dtype=dtype, softcap=softcap),
            lacks=self.lacks,
            foreign=True,
        )

    def why_not(
        self, device: torch.device, dtype: torch.dtype, softcap: float | None = None
    ) -> str | None:
        """Say why it cannot run like this; None if it can. Imports nothing but torch's own."""
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{self.package} is not installed"
        if device.type not in self.devices:
            return f"{self.package} runs on {' and '.join(self.devices)} alone"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"it takes {' and '.join(map(dtype_name, self.dtypes))} alone"
        if softcap is not None and not self.softcap:
            return "it takes no softcap"
        if self.needs is not None and not hasattr(importlib.import_module(self.module), self.needs):
            return f"this {self.package} has no {self.module}.{self.needs}"
        return None
