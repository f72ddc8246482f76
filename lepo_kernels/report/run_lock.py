"""One folder, one run: a lock on a run's folder that a crash releases.

The lock is ``flock`` on a file in the folder, so the operating system gives it up when the process
that holds it ends, however it ends. It holds between the processes of one machine and, where the
file system passes locks on (NFS does since Linux 2.6.12, Lustre if mounted with ``flock``), between
machines. Where the file system knows no locks, a warning says so and the folder stays unguarded.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows has no flock: folders are not guarded there.
    fcntl = None  # type: ignore[assignment]

# A name with "_" in front is skipped when a run's folder is pushed to a hub.
LOCK = "_run.lock"

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_logger = logging.getLogger(__name__)

# Folder -> descriptor and how often this process took the lock.
_held: dict[str, tuple[int, int]] = {}


class FolderInUseError(RuntimeError):
    """Another run is using the folder; the message says which."""


class RunLock:
    """The lock on one run's folder; a context manager.

    The process that holds it may take it again: `LEPOTrainer.train` does inside ``lepo train``.

    Args:
        folder: made when the lock is taken, and removed with it if nothing came into it.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._key = os.path.realpath(folder)
        self._made_folder = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FolderInUseError: another process holds it.
            OSError: the folder cannot be written to.
        """
        if self._key in _held:
            descriptor, times = _held[self._key]
            _held[self._key] = (descriptor, times + 1)
            return
        self._made_folder = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            _held[self._key] = (self._lock_file(), 1)

    def release(self) -> None:
        """Give it back; nothing happens where it is not held."""
        if self._key not in _held:
            return
        descriptor, times = _held[self._key]
        if times > 1:
            _held[self._key] = (descriptor, times - 1)
            return
        del _held[self._key]
        # Before the lock goes: afterwards the file may be another run's.
        (self.folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if self._made_folder:
            with contextlib.suppress(OSError):  # not empty: something came of the run
                self.folder.rmdir()

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _lock_file(self) -> int:
        """An open, locked descriptor of the lock file."""
        path = self.folder / LOCK
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                raise FolderInUseError(
                    f"output_dir: {self.folder} is in use by another run "
                    f"({holder or 'one that is just starting'}); "
                    "wait until it ends, or name another folder"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    os.close(descriptor)
                    raise
                _logger.warning(
                    "output_dir: the file system of %s knows no locks (%s); "
                    "nothing keeps a second run out of it",
                    self.folder,
                    error.strerror,
                )
            if _is_still_there(path, descriptor):
                break
            os.close(descriptor)  # its last holder removed it in between
        # On a full disk the lock holds without its text.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            text = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
            os.write(descriptor, text.encode())
        return descriptor


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _forget_in_child() -> None:
    """A forked child (a data loader's worker) must not keep its parent's lock alive."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
