"""For all tests: nothing of the environment leaks in, and hypothesis does not race against a busy machine."""

import os

import pytest
from hypothesis import settings

settings.register_profile("nsnet", deadline=None, print_blob=True)
settings.load_profile("nsnet")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NSNET_… flag, no colour, whoever runs the tests."""
    for name in os.environ:
        if name.startswith("NSNET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
