"""The first two steps of the GPU run: what they take for a fault, and that they go on after it."""

import json

import pytest
import torch

from benchmarks.gpu_run import calls, first_facts, graph_check, measured, smoke
from benchmarks.gpu_run.agreement import disagreement, same_bits
from benchmarks.gpu_run.decode_fact import is_launch
from benchmarks.gpu_run.product_checks import product_checks
from benchmarks.gpu_run.serving import Place, serving
from benchmarks.gpu_run.work import BYTES_PER_SECOND, FLOPS_PER_SECOND, Work
from lepo_kernels import dispatch
from tests import cuda_backend

CPU = torch.device("cpu")
needs_simulator = pytest.mark.skipif(
    cuda_backend.has_gpu() or cuda_backend.why_not() is not None, reason="no simulated library"
)


def test_results_agree_up_to_rounding_and_no_further():
    torch.manual_seed(0)
    exact = torch.randn(6, 400)
    assert disagreement(exact.bfloat16(), exact, 1) == ""
    assert "row 2 is off by" in disagreement(spoiled(exact, 2).bfloat16(), exact, 400)
    assert disagreement(exact * (1 + 1e-6), exact, 400) == ""
    assert "row 5 is off by" in disagreement(spoiled(exact, 5), exact, 400)
    assert "row 0 is off by" in disagreement(exact[0] * 1.01, exact[0], 400)


def spoiled(x, row):
    """With one wrong entry, the last of its row."""
    x = x.clone()
    x[row, -1] += 1
    return x


def test_results_of_another_form_do_not_agree():
    ones = torch.ones(3, 2)
    assert disagreement(ones, ones[:2], 1) == "is float32 [3, 2] instead of float32 [2, 2]"
    assert disagreement(ones.long(), ones.long(), 1) == ""
    assert disagreement(ones.long(), ones.long() + 1, 1) == "differs in 6 of 6 entries"
    assert disagreement(ones / 0, ones, 1) == "is finite elsewhere"
    assert disagreement(ones / 0, ones / 0, 1) == ""


def test_bits_are_compared_even_of_what_is_no_number():
    x = torch.tensor([0.0, torch.nan])
    assert same_bits(x, x.clone())
    assert not same_bits(x, -x)
    assert not same_bits(x, x.double())


def one_call(call):
    return calls.OpCall("an op", "sample_latent", call, 1, Work())


def test_a_call_with_other_bits_or_values_fails():
    noise = iter(range(100))
    unstable = one_call(lambda _: {"x": torch.tensor(1.0 + 1e-9 * next(noise))})
    smoke.check_call(unstable, "cuda")
    wobbling = one_call(lambda _: {"x": torch.tensor([float(next(noise))])})
    with pytest.raises(AssertionError, match="other bits the second time: x; x row 0 is off"):
        smoke.check_call(wobbling, "cuda")
    wrong = one_call(lambda backend: {"x": torch.tensor([1.0 if backend == "cuda" else 2.0])})
    with pytest.raises(AssertionError, match=r"^x row 0 is off by 1"):
        smoke.check_call(wrong, "cuda")


def test_every_op_is_called_at_odd_sizes():
    ops = {call.op for call in calls.op_calls(calls.TINY, CPU)}
    assert ops == {op for op in dispatch.KERNELS if not op.endswith("_backward")}
    assert calls.REAL.vocab % 2 == calls.TINY.vocab % 2 == 1
    assert calls.REAL.kept == calls.TINY.kept == (1, 64, 65)


def test_a_wrong_product_is_found(monkeypatch):
    from benchmarks.gpu_run import product_checks as module

    def sloppy(left, right, out=None):
        x = torch.mm(left, right).float()
        return x if out is None else out.copy_(x)

    monkeypatch.setattr(module, "wide_product", sloppy)
    monkeypatch.setattr(module, "add_product", lambda total, left, right: None)
    failed = []
    for name, _, run in product_checks(calls.TINY, CPU):
        try:
            run()
        except AssertionError:
            failed.append(name)
    assert failed == [
        "product into padded float32 rows",
        "product in float32, odd rows",
        "product added in place",
        "product of gradients in float32",
    ]


@needs_simulator
def test_a_replay_that_ignores_its_seed_is_found(monkeypatch):
    with serving(on_cpu=True) as place:
        graph_check.check_replay(calls.TINY, place)
        real, number = graph_check.lk.latent_step, iter(range(9))

        def stale(*words, seed, **more):
            return real(*words, seed=seed + next(number), **more)

        monkeypatch.setattr(graph_check.lk, "latent_step", stale)
        with pytest.raises(AssertionError, match="a replay differs in weights, scores"):
            graph_check.check_replay(calls.TINY, place)


# All of it at tiny sizes, with the simulated library and Triton's interpreter.
@needs_simulator
def test_a_failure_leaves_the_other_checks_run(tmp_path, monkeypatch, capsys):
    real = calls.lk.mix_embeddings

    def wrong(ids, weights, embedding, backend):
        found = real(ids, weights, embedding, backend=backend)
        return found * (2 if backend == "cuda" else 1)

    monkeypatch.setattr(calls.lk, "mix_embeddings", wrong)
    assert smoke.main([str(tmp_path / "counts"), "--tiny"]) == 1
    counts = json.loads((tmp_path / "counts").read_text())
    assert counts["failed"] == 3
    said = capsys.readouterr().out
    assert "failed   mix_embeddings, K 65 (cuda)" in said
    assert "passed   lepo_loss (cuda)" in said


def test_a_check_without_a_backend_is_skipped(capsys):
    nowhere = Place(torch.device("meta"), ())
    last = list(smoke.checks(calls.TINY, nowhere))[-1]
    assert smoke._outcome(last) == "skipped"
    assert "no backend of a GPU for it" in capsys.readouterr().out


def fact(name, make, seconds=0.0, missing=""):
    return measured.Fact(name, make, Work(bytes=6.0), setup=seconds, missing=missing)


def test_facts_are_saved_one_by_one_and_a_failure_is_one(tmp_path, monkeypatch):
    file, seen = tmp_path / "facts.json", []

    def broken():
        seen.append(set(json.loads(file.read_text())["facts"]))
        raise ValueError("no such thing")

    some = [
        fact("fine", lambda: lambda _: torch.ones(3).sum()),
        fact("broken", broken),
        fact("absent", broken, missing="no backend"),
        fact("late", broken, seconds=1e6),
    ]
    monkeypatch.setattr(first_facts, "facts_of", lambda sizes, place: some)
    words = [str(file), str(tmp_path / "counts"), "--within", "100", "--tiny"]
    assert first_facts.main(words, first_facts.time.monotonic()) == 1
    assert seen == [{"fine"}]
    found = json.loads(file.read_text())["facts"]
    assert found["fine"]["bytes_per_second"] == pytest.approx(6 / found["fine"]["seconds"])
    assert found["broken"] == {"error": "ValueError: no such thing"}
    assert found["absent"] == {"left_out": "no backend"}
    assert found["late"] == {"left_out": "the time ended"}
    assert "broken: error ValueError: no such thing" in list(first_facts.lines(file))
    assert list(first_facts.lines(tmp_path / "none")) == []
    some.pop(1)
    (tmp_path / "counts").unlink()
    assert first_facts.main(words, first_facts.time.monotonic()) == first_facts.OUT_OF_TIME


def test_work_takes_the_longer_of_its_times():
    assert Work(bytes=BYTES_PER_SECOND, flops=2 * FLOPS_PER_SECOND).seconds == 2
    assert Work(bytes=BYTES_PER_SECOND).seconds == 1


def test_launches_are_told_from_other_events():
    launches = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaMemcpyAsync")
    assert all(map(is_launch, launches))
    assert not any(map(is_launch, ("aten::mm", "cudaDeviceSynchronize", "lepo_kernels::mix")))
