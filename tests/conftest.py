"""What every test run understands."""

import signal

import pytest

# A release that is newer than the lock may deprecate what this package still has to call, so that
# it runs with the oldest one, too.
DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")

USUAL_HANDLERS = {signal.SIGINT: signal.default_int_handler}
if hasattr(signal, "SIGHUP"):
    USUAL_HANDLERS[signal.SIGHUP] = signal.SIG_DFL


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--list-deprecations",
        action="store_true",
        help="list deprecation warnings at the end instead of failing on them",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A job in the background has SIGINT ignored, and one under nohup SIGHUP; so would have what
    # tests start.
    for signum, usual in USUAL_HANDLERS.items():
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, usual)
    if config.getoption("--list-deprecations"):
        for category in DEPRECATIONS:
            # Later lines of this setting count before earlier ones.
            config.addinivalue_line("filterwarnings", f"default::{category}")
