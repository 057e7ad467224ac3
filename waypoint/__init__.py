"""The L7 stop on the way: HTTP routing and policy for a namespace or a service.

Not built yet. The package exists so that its place in the layers is held: it will consume the same Envoy
xDS resources that istiodlite sends to a real Envoy waypoint, and carry HBONE by the same engine as the
node agent. Until then a service that names a waypoint is refused with `waypoint_unresolved` unless a
foreign waypoint (Envoy under Istio) answers.
"""
