"""The one way out of a decision that cannot be carried out."""

from hbone.reasons import Reason

__all__ = ["RefusalError"]


class RefusalError(Exception):
    """The connection has to be refused for `reason`, whatever else is true of it.

    needs: resource names that were not known; resolve: host names without an address.
    """

    def __init__(
        self, reason: Reason, detail: str, *, needs: tuple[str, ...] = (), resolve: tuple[str, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.needs = needs
        self.resolve = resolve
