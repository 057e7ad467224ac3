"""How commands fail."""


class CommandFailed(Exception):
    """Ends the command: `lines` go to standard error, `status` is the exit status."""

    def __init__(self, *lines: str, status: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.status = status
