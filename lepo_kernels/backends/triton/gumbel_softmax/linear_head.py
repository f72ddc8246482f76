"""What the logits of the dense Gumbel-softmax mixture are made of, where they are formed."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lepo_kernels.backends.rows import dense_rows
from lepo_kernels.backends.triton.common.launching import dtype_class
from lepo_kernels.backends.triton.gumbel_softmax.launching import dtype_class_beside_floats
from lepo_kernels.structures import Head
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor


@dataclass
class HeadAndTable:
    """What the logits are made of, and the table."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None
    table: Tensor  # [V, E]
    tied: bool

    @property
    def vocab(self) -> int:
        """V."""
        return self.lm_head.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.lm_head.shape[1]

    @property
    def dtype_class(self) -> str:
        """Of states and head in a table of tiles: products take them as they are."""
        return dtype_class(self.lm_head.dtype)

    @property
    def dtype_class_with_table(self) -> str:
        """Where logits and the table meet in a kernel."""
        is_mixed = self.dtype_class == "half" and dtype_class_beside_floats(self.table) == "float"
        return "mixed" if is_mixed else self.dtype_class

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the states to the cap."""
        return (
            self.hidden,
            self.hidden.stride(0),
            self.lm_head,
            self.lm_head.stride(0),
            self.width,
            self.bias,
            self.softcap,
        )


def head_of(
    head: Head,
    embedding: Tensor | None,  # [V, E]
) -> HeadAndTable:
    """All tensors agree on N, V and D."""
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
    check_tensor("hidden", hidden, ("N", "D"), FLOAT_DTYPES)
    width, device = hidden.shape[1], hidden.device
    check_tensor("lm_head", lm_head, ("V", width), (hidden.dtype,), device)
    vocab = lm_head.shape[0]
    if bias is not None:
        check_tensor("bias", bias, (vocab,), (hidden.dtype,), device)
        bias = bias.contiguous()
    hidden, lm_head = dense_rows(hidden), dense_rows(lm_head)
    if embedding is None:
        return HeadAndTable(hidden, lm_head, bias, softcap, lm_head, tied=True)
    check_tensor("embedding", embedding, (vocab, "E"), FLOAT_DTYPES, device)
    return HeadAndTable(hidden, lm_head, bias, softcap, dense_rows(embedding), tied=False)
