"""nsnet on another machine: what else may answer there."""

import pytest

from nsnet.errors import MachineError
from nsnet.kernel.remote import Talk

ANSWERS = [
    ("echo '*** welcome ***'; cat", "what answers is not nsnet: b'\\*\\*\\* welcome", "NSNET_RSH says"),
    ("echo hi; cat", "what answers is not nsnet: b'hi", "NSNET_RSH says"),
    (r"printf 'nsnt\0\0\0\1\301'; cat", "what nsnet on machine b answers cannot be read", "is it the same nsnet"),
    (r"printf 'nsnt\377\377\377\377'; cat", "what answers is not nsnet", "NSNET_RSH says"),
    ("exit 255", "sh does not reach 10.0.0.2", "NSNET_RSH says"),
    ("exit 127", "sh cannot be run, or there is no nsnet on 10.0.0.2", "NSNET_RSH says"),
    ("exit 3", r"nsnet on machine b has ended \(3\)", "is it the same nsnet"),
]


@pytest.mark.parametrize(("script", "error", "hint"), ANSWERS, ids=[script for script, *_ in ANSWERS])
def test_what_is_not_nsnet_is_said(monkeypatch: pytest.MonkeyPatch, script: str, error: str, hint: str) -> None:
    monkeypatch.setenv("NSNET_RSH", f'sh -c "{script}" sh')
    with Talk("b", "10.0.0.2", "demo") as talk, pytest.raises(MachineError, match=error) as caught:
        talk.answer(int)
    assert hint in caught.value.hint
