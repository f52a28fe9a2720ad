"""The two ways in which a command ends other than well (DESIGN.md, "The surface")."""


class BadInput(Exception):  # noqa: N818 - it is the input that is bad, not the program
    """Input that cannot be used, or hardware that is not there: one line, exit status 2.

    The message says what was found, what was expected and what to do, without a newline.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class HardwareAbsent(BadInput):
    """The hardware that was asked for is not in this machine: *n/a*, never a failure."""


class Rejected(Exception):  # noqa: N818 - the guard's word
    """A guard refused: exit status 1.

    ``reasons`` holds one line for each; ``evidence``, where there is some, is what was seen, as
    plain data for the sidecar.
    """

    def __init__(self, reasons: list[str], evidence: dict[str, object] | None = None) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.evidence = evidence
