"""Numbers and tensors that float32 or a kernel cannot hold: served as documented, or named.

Every number of every public op and score in turn is one that no range check can be trusted to
think of. A call either returns finite or documented results, or raises a TypeError or ValueError
whose message opens with the argument.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import lepo_kernels
from tests.ops.calls import DIFFERENTIABLE, NAMES, SCORES, arguments_of, function

HUGE = 10**400
# Python prints no int of so many digits.
ENDLESS = 10**5000
HOSTILE = (
    *(1e-300, -1e-300, 5e-324, 1e300, -1e300, 1e39, math.nan, math.inf, -math.inf),
    *(2**70, -(2**70), HUGE, -HUGE, ENDLESS, -ENDLESS, Fraction(1, 2), Fraction(ENDLESS)),
    *(Fraction(1, ENDLESS), Decimal("0.5"), Decimal("NaN"), np.float32(0.5), np.float64(1e300)),
    *(np.int64(2), np.float16(0.5), np.bool_(True), np.array(0.5), True, 0.5j, "0.5", b"1"),
)
# What is welcome where another number is not: written as NumPy or the standard library has it.
HALVES = (Fraction(1, 2), np.float32(0.5), np.float16(0.5))


def numbers_of(name):
    arguments = arguments_of(name)
    return [key for key, value in arguments.items() if isinstance(value, int | float)]


NUMBERS = [(name, key) for name in NAMES for key in numbers_of(name)]


def test_every_public_function_is_called():
    functions = {
        name
        for name in lepo_kernels.__all__
        if callable(getattr(lepo_kernels, name))
        and not isinstance(getattr(lepo_kernels, name), type)
    }
    others = {"backend", "info", "evaluate_policy", "latent_generate", "policy_log_probs"}
    parallel = {name for name in functions if name.startswith("vocab_parallel")}
    assert functions - others - parallel == set(NAMES)


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_a_number_is_served_or_named(name, key):
    for value in HOSTILE:
        try:
            out = function(name)(**{**arguments_of(name), key: value})
        except (TypeError, ValueError) as refusal:
            check_blame(key, str(refusal))
        else:
            nan = any(x.is_floating_point() and x.isnan().any() for x in tree_leaves(out))
            assert not nan, f"{key}={value!r}"


def check_blame(key, message):
    # delta lies above 1 + epsilon_high.
    suspects = (key, "delta") if key == "epsilon_high" else (key,)
    assert message.split(":")[0] in suspects, message
    assert len(message) < 500


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_what_float32_cannot_hold_is_refused(name, key):
    # Where everything below is as good as -infinity, it is no fault.
    open_below = {"min_log_prob"}
    for value in (1e39, 1e300, 2**130, HUGE, *(() if key in open_below else (-1e39, -HUGE))):
        if isinstance(value, int) and key in {"top_k"} and value > 0:
            continue  # no number of the kernels: more than there are ids keeps all
        with pytest.raises((TypeError, ValueError), match=rf"^{key}: "):
            function(name)(**{**arguments_of(name), key: value})


REALS = [(name, key) for name, key in NUMBERS if isinstance(arguments_of(name)[key], float)]


@pytest.mark.parametrize(("name", "key"), REALS)
@pytest.mark.parametrize("half", HALVES, ids=lambda half: type(half).__name__)
def test_a_number_may_be_written_in_any_way(name, key, half):
    arguments = arguments_of(name)
    low = 1.5 if key == "delta" else 0.0
    same = [
        function(name)(**{**arguments, key: value})
        for value in (type(half)(half + type(half)(low)), 0.5 + low)
    ]
    for x, y in zip(*map(tree_leaves, same), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("name", "key"), [("concrete_log_density", "tau"), ("exp_concrete_log_density", "tau"),
                      ("gaussian_log_density", "sigma"), ("linear_log_probs", "softcap"),
                      ("sample_latent", "temperature"), ("sample_latent", "noise_scale")],
)  # fmt: skip
def test_a_divisor_below_float32_is_refused(name, key):
    for value in (1e-300, 1e-39, Fraction(1, HUGE)):
        with pytest.raises(ValueError, match=rf"^{key}: "):
            function(name)(**{**arguments_of(name), key: value})


@pytest.mark.parametrize("sigma", [2e-38, 1e-20, 2**70, 3e38])
def test_the_density_of_any_sigma_is_that_of_float64(sigma):
    embedding = torch.tensor([[0.5, -1.0]]) * min(float(sigma), 1.0)
    got = lepo_kernels.gaussian_log_density(embedding, torch.zeros(1, 2), sigma)
    exact = torch.distributions.Normal(torch.zeros(1, 2).double(), float(sigma))
    wanted = exact.log_prob(embedding.double()).sum(-1)
    # Three roundings of numbers up to 2 D log(sigma).
    torch.testing.assert_close(
        got.double(), wanted, rtol=8 * torch.finfo(torch.float32).eps, atol=0
    )


TENSORS = [
    (name, key)
    for name in NAMES
    for key, value in arguments_of(name).items()
    if isinstance(value, torch.Tensor)
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize(("name", "key"), TENSORS)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_a_nested_tensor_is_named(name, key, layout):
    like = arguments_of(name)[key]
    parts = [like.new_zeros(2, 3), like.new_zeros(1, 3)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    with pytest.raises(TypeError, match=rf"^{key}: expected a dense Tensor, got "):
        function(name)(**{**arguments_of(name), key: nested})


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_tell_the_shapes(name):
    # As a model is built on "meta" to see its sizes; autocast knows no such device.
    out = function(name)(**arguments_of(name, "meta"))
    real = function(name)(**arguments_of(name))
    for x, y in zip(tree_leaves(out), tree_leaves(real), strict=True):
        assert (x.shape, x.dtype, x.device.type) == (y.shape, y.dtype, "meta")


DERIVATIVES = [(name, key) for name, keys in DIFFERENTIABLE.items() for key in keys]


def first_of(name, key):
    """The op as a function of one argument, its first differentiable output."""
    arguments = arguments_of(name)

    def f(x):
        out = function(name)(**{**arguments, key: x})
        return out.embedding if name == "latent_step" else tree_leaves(out)[0]

    return f, arguments[key]


@pytest.mark.parametrize(("name", "key"), DERIVATIVES)
def test_forward_mode_is_refused(name, key):
    f, x = first_of(name, key)
    refusal = rf"lepo_kernels::{name}: forward-mode derivatives .* are not offered"
    with pytest.raises(RuntimeError, match=refusal):
        torch.func.jvp(f, (x,), (torch.ones_like(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match=refusal):
            f(dual)
        # What does not depend on it is served.
        f(x)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "hard_log_prob"])
def test_the_scores_are_plain_torch_and_have_forward_mode(name):
    key = "logits" if "logits" in arguments_of(name) else "mean"
    f, x = first_of(name, key)
    direction = torch.linspace(0.5, 1, x.numel()).reshape(x.shape)
    _, forward = torch.func.jvp(f, (x,), (direction,))
    leaf = x.detach().requires_grad_()
    (backward,) = torch.autograd.grad(f(leaf).sum(), leaf)
    # The same products, summed in another order.
    torch.testing.assert_close(forward.sum(), (backward * direction).sum(), rtol=1e-5, atol=1e-6)


def test_messages_name_numbers_that_cannot_be_printed():
    with pytest.raises(ValueError, match=re.escape("got int of too many digits to print")):
        lepo_kernels.sample_latent(torch.zeros(1, 2), top_k=-ENDLESS)
