"""Who read what, and what many conversions have in common. Pure.

A user of a token is a conversion, named by the key of its object, or a shared part, named by its own token: who reads
a part depends on that token, and the part on what it read. So a thousand replicas do not each keep the same dozen tokens.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from istiodlite.objects import ObjectKey

Token = tuple[Hashable, ...]


class Dependencies:
    """token -> users; a single user stands for itself, as most tokens have one."""

    def __init__(self) -> None:
        self._users: dict[Token, Token | set[Token]] = {}
        self._tokens: dict[Token, Token] = {}

    def held(self, tokens: Iterable[Token]) -> tuple[Token, ...]:
        """One object for each token, however many conversions left it."""
        shared = self._tokens
        return tuple([shared.setdefault(token, token) for token in tokens])

    def users_of(self, token: Token) -> tuple[Token, ...]:
        users = self._users.get(token, ())
        return tuple(users) if isinstance(users, set) else (users,) if users else ()

    def note(self, user: Token, was: Collection[Token], now: Collection[Token]) -> list[Token]:
        """`user` read `was` and reads `now`; returns what nobody reads any more."""
        if was and now:
            if was == now:
                return []
            was, now = set(was).difference(now), set(now).difference(was)
        for token in now:
            self._add(token, user)
        return [token for token in was if self._remove(token, user)]

    def _add(self, token: Token, user: Token) -> None:
        others = self._users.setdefault(token, user)
        if isinstance(others, set):
            others.add(user)
        elif others != user:
            self._users[token] = {others, user}

    def _remove(self, token: Token, user: Token) -> bool:
        users = self._users[token]
        if not isinstance(users, set):
            del self._users[token]
            self._tokens.pop(token, None)
            return True
        users.discard(user)
        if len(users) == 1:
            self._users[token] = users.pop()
        return False


@dataclass(frozen=True, slots=True)
class _Part:
    value: Any
    used: tuple[Token, ...]


class Parts:
    """Results of `make(view, *arguments)`, kept for as long as somebody uses them and nothing they read changes."""

    def __init__(self, users: Dependencies) -> None:
        self._users = users
        self._made: dict[Token, _Part] = {}

    def get(self, token: Token, make: Callable[[], tuple[Any, set[Token]]]) -> Any:
        """`make` tells the value and what it read."""
        found = self._made.get(token)
        if found is None:
            value, used = make()
            found = self._made[token] = _Part(value, self._users.held(used))
            self._users.note(token, (), found.used)
        return found.value

    def drop(self, tokens: Iterable[Token]) -> None:
        """Forgets parts, and those that only they used; other tokens are passed over."""
        for token in tokens:
            if (part := self._made.pop(token, None)) is not None:
                self.drop(self._users.note(token, part.used, ()))

    def affected(self, tokens: Iterable[Token]) -> Iterator[ObjectKey]:
        """The conversions that read one of these, themselves or through a part; such parts are forgotten."""
        for token in tokens:
            for user in self._users.users_of(token):
                if isinstance(user, ObjectKey):
                    yield user
                else:
                    yield from self.affected((user,))
                    self.drop((user,))
