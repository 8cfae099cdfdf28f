"""The few kinds of error that nsnet shows to a person, each with what to do about it.

Everything below `cli/` raises; only `cli/` prints and exits. The exit codes are the contract of the verbs:
1 a check failed or the wanted state was not reached, 2 wrong input, 5 this machine cannot, 6 a bug in nsnet. Two more
are what a shell gives for a signal: of Ctrl-C, and of a reader that went away.
"""

INTERRUPTED = 130  # SIGINT
READER_GONE = 141  # SIGPIPE


class NsnetError(Exception):
    """A sentence for a person (`str(error)`), a hint that says what to do, and the exit code of the command."""

    exit_code = 6

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(NsnetError):
    """What was typed or read is wrong; the message starts with `file:line:column:` where there is one."""

    exit_code = 2


class NotReachedError(NsnetError):
    """The wanted state, or a check, was not reached."""

    exit_code = 1


class MachineError(NsnetError):
    """This machine cannot do it: not root, a missing tool or kernel feature, a full disk."""

    exit_code = 5


class ObjectError(InputError):
    """An object says what cannot be. `key` is the object's (model.Key), `field` its path (`spec.ports[0].nodePort`).

    Pure rooms raise it; whoever read the files puts `file:line:column` in front (`manifests.located`).
    """

    def __init__(self, key: object, field: str, message: str, hint: str = "") -> None:
        super().__init__(f"{key}: {field}: {message}" if field else f"{key}: {message}", hint)
        self.key = key
        self.field = field
        self.reason = message
