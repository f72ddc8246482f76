"""One call of every op at a model's shapes, with the gradients where it has some."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import lepo_kernels as lk
from benchmarks.gpu_run.work import Work, product

Outputs = dict[str, Tensor]
# What it is given is the name of a backend.
Call = Callable[[str], Outputs]


@dataclass(frozen=True)
class Sizes:
    """Of the calls: vocabulary, width of the hidden states, rows of a step and of a loss."""

    vocab: int
    width: int
    rows: int
    loss_rows: int
    kept: tuple[int, ...]  # entries of a mixture


# Odd, as a resized vocabulary may be; one entry, the most of the draw's fast path, and one more.
REAL = Sizes(vocab=151937, width=2048, rows=64, loss_rows=1024, kept=(1, 64, 65))
TINY = Sizes(vocab=1031, width=24, rows=3, loss_rows=5, kept=(1, 64, 65))


@dataclass(frozen=True)
class OpCall:
    """A call of an op, by the name that `dispatch.KERNELS` has for it.

    Attributes:
        sums: terms of the longest sum whose rounding the outputs show.
        work: of one call.
    """

    name: str
    op: str
    call: Call
    sums: int
    work: Work


def op_calls(sizes: Sizes, device: torch.device) -> list[OpCall]:
    """One or more calls of each public op, the draw's with each number of kept entries."""
    data = _Data(sizes, device)
    found = [data.philox()]
    for kept in sizes.kept:
        found += [data.sample_latent(kept), data.latent_step(kept), data.mix_embeddings(kept)]
    found += [data.gather_log_probs(), data.linear_log_probs(), data.lepo_loss()]
    # Compiled at their first call, which takes longer than all of the above.
    return [*found, data.gumbel_softmax_embedding(), data.linear_gumbel_softmax_embedding()]


class _Data:
    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        torch.manual_seed(0)
        V, D = sizes.vocab, sizes.width
        # Logits of a spread of some units, as a model's have.
        self.head = self.normal(V, D, scale=2 * D**-0.5)
        self.hidden = self.normal(sizes.loss_rows, D)
        self.logits = self.normal(sizes.rows, V, scale=2.0)
        self.head_bytes = 2.0 * V * D

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, device=self.device)
        return (x * scale).bfloat16()

    def ids(self, rows: int, kept: int) -> Tensor:  # [rows, kept]
        found = torch.randint(self.sizes.vocab, (rows, kept), device=self.device)
        # The last entry, where a kernel's vectors end.
        found[:, -1] = self.sizes.vocab - 1
        return found

    def philox(self) -> OpCall:
        ids, keys = self.ids(self.sizes.rows, 64), torch.arange(self.sizes.rows).to(self.device)

        def call(backend: str) -> Outputs:
            return {"words": lk.philox_words(7, keys, 3, ids, backend=backend)}

        return OpCall("philox_words", "philox_words", call, 1, Work())

    def sample_latent(self, kept: int) -> OpCall:
        def call(backend: str) -> Outputs:
            drawn = lk.sample_latent(
                self.logits, tau=0.7, top_k=kept, top_p=0.95, seed=7, step=3, backend=backend
            )
            return dict(drawn._asdict())

        work = Work(2.0 * self.logits.numel())
        return OpCall(f"sample_latent, K {kept}", "sample_latent", call, self.sizes.vocab, work)

    def latent_step(self, kept: int) -> OpCall:
        def call(backend: str) -> Outputs:
            step = lk.latent_step(
                self.logits, self.head, tau=0.7, top_k=kept, seed=7, step=3, backend=backend
            )
            return {**step.sample._asdict(), "embedding": step.embedding}

        work = Work(2.0 * self.logits.numel())
        return OpCall(f"latent_step, K {kept}", "latent_step", call, self.sizes.vocab, work)

    def mix_embeddings(self, kept: int) -> OpCall:
        ids = self.ids(self.sizes.loss_rows, kept)
        raw = torch.rand(ids.shape, device=self.device)
        grad = self.normal(self.sizes.loss_rows, self.sizes.width)

        def call(backend: str) -> Outputs:
            weights, table = _leaves(backend, raw / raw.sum(1, keepdim=True), self.head)
            mixed = lk.mix_embeddings(ids, weights, table, backend=backend)
            mixed.backward(grad)
            return _with_gradients({"mixture": mixed}, weights=weights, embedding=table)

        work = Work(2 * self.head_bytes + 6.0 * ids.numel() * self.sizes.width)
        name = f"mix_embeddings, K {kept}"
        return OpCall(name, "mix_embeddings", call, max(kept, self.sizes.width), work)

    def gather_log_probs(self) -> OpCall:
        ids = self.ids(self.sizes.rows, 64)

        def call(backend: str) -> Outputs:
            (logits,) = _leaves(backend, self.logits)
            found = lk.gather_log_probs(logits, ids, backend=backend)
            _total(found.logits - found.lse[:, None], found.entropy).backward()
            return _with_gradients(dict(found._asdict()), logits=logits)

        work = Work(6.0 * self.logits.numel())
        return OpCall("gather_log_probs", "gather_log_probs", call, self.sizes.vocab, work)

    def linear_log_probs(self) -> OpCall:
        ids = self.ids(self.sizes.loss_rows, 64)

        def call(backend: str) -> Outputs:
            hidden, head = _leaves(backend, self.hidden, self.head)
            found = lk.linear_log_probs(hidden, head, ids, backend=backend)
            _total(found.logits - found.lse[:, None], found.entropy).backward()
            return _with_gradients(dict(found._asdict()), hidden=hidden, lm_head=head)

        work = Work(flops=4 * self._product())
        return OpCall("linear_log_probs", "linear_log_probs", call, self.sizes.width, work)

    def lepo_loss(self) -> OpCall:
        rows, kept = self.sizes.loss_rows, 30
        ids = self.ids(rows, kept)
        weights = torch.rand(ids.shape, device=self.device)
        weights /= weights.sum(1, keepdim=True)
        latent = torch.arange(rows, device=self.device) % 2 == 0
        weights[~latent] = 0
        weights[~latent, 0] = 1
        advantages = torch.randn(rows, device=self.device)
        row_weights = torch.full((rows,), 1 / rows, device=self.device)

        def call(backend: str) -> Outputs:
            hidden, head = _leaves(backend, self.hidden, self.head)
            found = lk.lepo_loss(
                hidden, head, ids, weights, latent, advantages, row_weights, backend=backend
            )
            found.loss.backward()
            return _with_gradients({"loss": found.loss}, hidden=hidden, lm_head=head)

        work = Work(flops=3 * self._product())
        return OpCall("lepo_loss", "lepo_loss", call, self.sizes.width, work)

    def gumbel_softmax_embedding(self) -> OpCall:
        grad = self.normal(self.sizes.rows, self.sizes.width)

        def call(backend: str) -> Outputs:
            logits, table = _leaves(backend, self.logits, self.head)
            found = lk.gumbel_softmax_embedding(logits, table, 0.7, seed=7, step=3, backend=backend)
            found.embedding.backward(grad)
            outputs = dict(found._asdict())
            return _with_gradients(outputs, logits=logits, embedding=table)

        name = "gumbel_softmax_embedding"
        return OpCall(name, name, call, self.sizes.vocab, Work(5 * self.head_bytes))

    def linear_gumbel_softmax_embedding(self) -> OpCall:
        grad, few = self.normal(self.sizes.rows, self.sizes.width), self.hidden[: self.sizes.rows]

        def call(backend: str) -> Outputs:
            hidden, head = _leaves(backend, few, self.head)
            found = lk.linear_gumbel_softmax_embedding(
                hidden, head, None, 0.7, seed=7, step=3, backend=backend
            )
            found.embedding.backward(grad[: len(few)])
            return _with_gradients(dict(found._asdict()), hidden=hidden, lm_head=head)

        name = "linear_gumbel_softmax_embedding"
        return OpCall(name, name, call, self.sizes.vocab, Work(8 * self.head_bytes))

    def _product(self) -> float:
        return product(self.sizes.loss_rows, self.sizes.width, self.sizes.vocab)


def _leaves(backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The reference makes products in the dtype of its inputs: it gets them in float32."""
    wide = backend == "reference"
    return tuple((x.float() if wide else x).detach().requires_grad_() for x in tensors)


def _total(log_probs: Tensor, entropy: Tensor) -> Tensor:  # []
    """Weights that differ by the row: no row's gradient is another's."""
    by_row = torch.linspace(-1, 1, len(entropy), device=entropy.device)
    return (by_row[:, None] * log_probs).sum() + (by_row * entropy).sum()


def _with_gradients(outputs: Outputs, **leaves: Tensor) -> Outputs:
    found = {name: x.detach() for name, x in outputs.items()}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        found[f"gradient of {name}"] = leaf.grad
    return found
