"""What one kind holds: objects, and errors of those that cannot be used. Pure."""

from collections.abc import Iterable
from typing import Generic

from istiodlite.kube.key import ObjectKey
from istiodlite.kube.reading import Reading, T, Unusable


class Collection(Generic[T]):
    """An object that cannot be used leaves its last good version in force, as with a folder of manifests:
    a typing error in a policy must not lift it."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, T] = {}
        self.errors: dict[ObjectKey, Unusable] = {}

    def replace(self, readings: Iterable[Reading[T]]) -> dict[ObjectKey, T | None]:
        """Takes a whole list; returns what differs from before (None: removed)."""
        old, self.errors = self.objects, {}
        self.objects = {}
        for reading in readings:
            good = reading.object
            if reading.error is not None:
                self.errors[reading.key] = reading.error
                good = old.get(reading.key)
            if good is not None:
                self.objects[reading.key] = good
        changes: dict[ObjectKey, T | None] = {
            key: one for key, one in self.objects.items() if old.get(key) != one
        }
        changes.update((key, None) for key in old if key not in self.objects)
        return changes

    def change(self, reading: Reading[T]) -> dict[ObjectKey, T | None]:
        """Takes one event; empty if nothing that matters changed."""
        key, old = reading.key, self.objects.get(reading.key)
        self.errors.pop(key, None)
        if reading.error is not None:
            self.errors[key] = reading.error
            return {}
        if reading.object == old:
            return {}
        if reading.object is None:
            del self.objects[key]
        else:
            self.objects[key] = reading.object
        return {key: reading.object}
