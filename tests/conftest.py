"""What every test run understands."""

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
    if config.getoption("--list-deprecations"):
        for category in DEPRECATIONS:
            # Later lines of this setting count before earlier ones.
            config.addinivalue_line("filterwarnings", f"default::{category}")
