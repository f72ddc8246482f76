"""Output that cannot be written costs the output and nothing else."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from lepo_kernels.streams import ForgivingStream, forgiving, forgiving_output, representable


def text_stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


# Latin-1 has the middle dot and no block.
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_goes_to_any_encoding(encoding: str) -> None:
    inner = text_stream(encoding)
    text = "bars █▋ marks ●○· and 日本 and a lone surrogate \ud800"
    assert ForgivingStream(inner).write(text) == len(text)
    written = inner.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert written.startswith("bars ")
    assert len(written) == len(text)


def test_bars_have_stand_ins() -> None:
    assert representable("██▏ ● ○ · …", "ascii") == "##  * o . ~"


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as inner:
        stream = ForgivingStream(inner)
        for _ in range(3):
            stream.write("x" * 100_000)
            stream.flush()
        assert stream.is_broken
    # Leaving the block has flushed what was left in the file's buffer, without an error.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "w") as inner:
        stream = ForgivingStream(inner)
        stream.write("x")
        stream.flush()
        # There may be room later.
        assert not stream.is_broken
        stream.finish()
        assert stream.is_broken


def test_closed_and_missing_streams_swallow_everything() -> None:
    inner = text_stream("utf-8")
    inner.close()
    for stream in (ForgivingStream(inner), ForgivingStream(None)):
        stream.write("x")
        stream.writelines(["x", "y"])
        stream.flush()
        stream.finish()
        assert not stream.isatty()


def test_streams_are_wrapped_once_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    outer: TextIO = text_stream("ascii")
    monkeypatch.setattr(sys, "stdout", outer)
    with forgiving_output():
        assert forgiving(sys.stdout) is sys.stdout
        print("●")
    assert sys.stdout is outer
    assert outer.buffer.getvalue() == b"*\n"


# A table, a plain print and argparse's help, each from a process of its own: what Python flushes
# at its end counts, too.
@pytest.mark.parametrize("words", [["info"], ["--help"], ["info", "--help"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["pipe nobody reads", "ascii"])
def test_commands_end_well_on_any_output(words: list[str], kind: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii" if kind == "ascii" else "utf-8"}
    with subprocess.Popen(
        [sys.executable, "-m", "lepo_kernels.cli.main", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if kind == "ascii":
            assert "lepo" in process.stdout.read()
        process.stdout.close()
        said = process.stderr.read()
        process.wait()
    assert (process.returncode, said) == (0, "")
