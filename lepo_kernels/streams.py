"""Output streams that never end a run: what a terminal cannot show is replaced or dropped.

Training takes hours; a line of progress is worth none of them. So a character that the stream's
encoding does not have becomes a question mark, and a reader that is gone (``| head``, a closed
terminal, a full disk behind ``>``) costs the output and nothing else.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# Nobody will ever read from such a stream again; a full disk may have room later.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
# What bars and tables are drawn with, as wide as before.
_STAND_INS = str.maketrans("█▉▊▋▌▍▎▏●○·…", "#####   *o.~")


class ForgivingStream:
    """A text stream whose ``write`` and ``flush`` never raise.

    Args:
        stream: what to write to; None (a process without standard output) swallows everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.is_broken = stream is None

    def write(self, text: str) -> int:
        """Write what the stream can hold of the text."""
        if self.stream is None or self.is_broken:
            return len(text)
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.write(representable(text, self.encoding))
        except (OSError, ValueError) as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if anybody is there to read."""
        if self.stream is None or self.is_broken:
            return
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def finish(self) -> None:
        """Flush for the last time: what cannot be written by now must not fail at exit."""
        if self.stream is not None and not self.is_broken:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    @property
    def encoding(self) -> str:
        """The stream's encoding; UTF-8 where it has none."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _fail(self, error: OSError | ValueError) -> None:
        # A ValueError says that the stream is closed.
        if isinstance(error, ValueError) or error.errno in _GONE:
            self._give_up()

    def _give_up(self) -> None:
        """Drop all further output, also what Python would flush when the process ends."""
        self.is_broken = True
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)


def representable(text: str, encoding: str) -> str:
    """The text with a stand-in, or a question mark, for what the encoding does not have."""
    return text.translate(_STAND_INS).encode(encoding, errors="replace").decode(encoding)


def forgiving(stream: TextIO | None) -> Any:
    """The stream, wrapped unless it is wrapped already or is a buffer in memory."""
    if isinstance(stream, ForgivingStream | io.StringIO):
        return stream
    return ForgivingStream(stream)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Wrap standard output and standard error for as long as the context lasts."""
    outer = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = forgiving(sys.stdout), forgiving(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, ForgivingStream):
                stream.finish()
        sys.stdout, sys.stderr = outer
