"""For all tests: nothing of the environment leaks in, and hypothesis does not race against a busy machine.

A desk looks for new examples in every run. CI (`CI` in the environment, which .ci/run sets) tries the same ones for the
same code, so that a change is judged by itself.
"""

import os

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.faulted")  # what is proved there says what was wrong
settings.register_profile("nsnet", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("nsnet")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NSNET_… flag, no colour, whoever runs the tests."""
    for name in os.environ:
        if name.startswith("NSNET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
