"""The mesh group's manifests and how it knows which way traffic goes."""

from pathlib import Path

from tests.bench.mesh import established, manifests, mesh_cases

TABLE = """  sl  local_address rem_address   st
   0: 0100000A:3AA0 0200000A:C000 01 00000000:00000000
   1: 0100000A:3AA0 0200000A:C001 06 00000000:00000000
   2: 00000000:3AA0 00000000:0000 0A 00000000:00000000
   3: 0100000A:4A38 0200000A:C002 01 00000000:00000000
"""


def test_only_established_connections_to_the_port_count() -> None:
    assert established(TABLE, 15008) == 1
    assert established(TABLE, 15001) == 0


def test_only_the_namespace_label_differs_between_the_halves() -> None:
    ours, none = (manifests(Path("/load"), enrolled=enrolled) for enrolled in (True, False))
    assert ours[1:] == none[1:]
    assert ours[0]["metadata"]["labels"] == {"istio.io/dataplane-mode": "ambient"}
    assert none[0]["metadata"]["labels"] == {}


def test_rows_of_the_mesh_are_a_part_of_those_of_the_data_plane() -> None:
    assert {"bulk-up-1", "bulk-up-8", "rr-1-64b", "rr-32-64b", "conn-warm"} <= {c.name for c in mesh_cases()}
