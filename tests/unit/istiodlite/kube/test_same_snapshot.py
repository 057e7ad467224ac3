"""Folder or cluster, in any order, in any batches: the same objects give the same resources."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.kube.collection import Collection
from istiodlite.kube.reading import Reading, key_of
from istiodlite.kube.reflector import (
    Event,
    Failure,
    List,
    Page,
    Replace,
    Sleep,
    State,
    Trouble,
    Woke,
    advance,
)
from istiodlite.manifests import load_text
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import MeshConfig, Registry
from istiodlite.sources.folder import Folder
from istiodlite.sources.kube.kinds import WATCHED
from istiodlite.sources.kube.reading import read
from tests.unit.istiodlite.histories import VARIANTS
from tests.unit.istiodlite.mesh import documents

KINDS = {kind.kind: kind for kind in WATCHED}


def _body(text: str) -> dict[str, Any]:
    (loaded,), errors = load_text(documents(text), "x.yaml")
    assert not errors
    return json.loads(json.dumps(loaded.body))  # type: ignore[no-any-return]


BODIES = [[_body(text) for text in variants] for variants in VARIANTS]
# An API server fills the namespace in, and adds what nobody asked for.
for one in [body for variants in BODIES for body in variants]:
    one["metadata"]["managedFields"] = [{"manager": "kubectl"}]

steps = st.lists(
    st.tuples(
        st.integers(0, len(BODIES) - 1),
        st.integers(0, 3),
        st.sampled_from(["event", "event", "event", "relist", "drop"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


class Cluster:
    """Reflectors of all kinds fed from one history, and the batches that come of it."""

    def __init__(self) -> None:
        self.states: dict[str, State[Reading[KubeObject]]] = {kind: State() for kind in KINDS}
        self.collections: dict[str, Collection[KubeObject]] = {kind: Collection() for kind in KINDS}
        self.there: dict[ObjectKey, dict[str, Any]] = {}
        self.version = 1
        self.batch: dict[ObjectKey, KubeObject | None] = {}

    def relist(self, kind: str, pages: int = 2) -> None:
        while not isinstance(self.states[kind].action, List):
            woken = isinstance(self.states[kind].action, Sleep)
            self.step(kind, Woke() if woken else Failure(Trouble.EXPIRED))
        bodies = [body for key, body in self.there.items() if key.kind == kind]
        readings = [read(KINDS[kind], body) for body in bodies]
        cut = len(readings) // pages
        self.step(kind, Page(tuple(readings[:cut]), str(self.version), "more"))
        self.step(kind, Page(tuple(readings[cut:]), str(self.version)))

    def step(self, kind: str, event: Any) -> None:
        self.states[kind], data = advance(self.states[kind], event, 0.5)
        if isinstance(data, Replace):
            self.batch.update(self.collections[kind].replace(data.items))
        elif data is not None:
            self.batch.update(self.collections[kind].change(data.item))

    def apply(self, place: int, which: int, how: str) -> None:
        states = [None, *BODIES[place]]
        body = states[which % len(states)]
        watched = KINDS[BODIES[place][0]["kind"]]
        key = key_of(watched, {"metadata": {"namespace": "default", **BODIES[place][0]["metadata"]}})
        self.version += 1
        if body is None:
            self.there.pop(key, None)
        else:
            self.there[key] = body
        if how == "relist":
            self.relist(key.kind)
            return
        if how == "drop":
            self.step(key.kind, Failure(Trouble.FAILED))
            self.step(key.kind, Woke())
        reading: Reading[KubeObject] = Reading(key, None) if body is None else read(watched, body)
        self.step(key.kind, Event(str(self.version), reading))


@settings(deadline=None, max_examples=150)
@given(steps, st.randoms(use_true_random=False))
def test_any_history_of_a_cluster_gives_what_a_folder_with_the_end_of_it_gives(
    history: list[tuple[int, int, str, bool]], random: Any
) -> None:
    cluster, registry = Cluster(), Registry(MeshConfig())
    kinds = list(KINDS)
    random.shuffle(kinds)
    for kind in kinds:
        cluster.relist(kind)
    for place, which, how, flush in history:
        cluster.apply(place, which, how)
        if flush:
            registry.apply(cluster.batch)
            cluster.batch = {}
    registry.apply(cluster.batch)

    left = list(cluster.there.values())
    random.shuffle(left)
    path = Path(tempfile.mkdtemp())
    try:
        folder, other = Folder(path), Registry(MeshConfig())
        for number, body in enumerate(left):
            # Now and then the folder is looked at half-way.
            (path / f"{random.randrange(10**6)}-{number}.json").write_text(json.dumps(body))
            if random.random() < 0.3:
                other.apply(folder.scan().changes)
        batch = folder.scan()
        assert batch.errors == ()
        other.apply(batch.changes)
    finally:
        shutil.rmtree(path)
    assert registry.resources == other.resources
    assert list(registry.conditions()) == list(other.conditions())
