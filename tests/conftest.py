"""What every test run understands."""

import signal

import pytest

# A release that is newer than the lock may deprecate what this package still has to call, so that
# it runs with the oldest one, too.
DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--list-deprecations",
        action="store_true",
        help="list deprecation warnings at the end instead of failing on them",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts jobs in the background with SIGINT ignored, and so would be what tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--list-deprecations"):
        for category in DEPRECATIONS:
            # Later lines of this setting count before earlier ones.
            config.addinivalue_line("filterwarnings", f"default::{category}")
