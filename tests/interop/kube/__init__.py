"""The Kubernetes source over real connections: against a scripted server, and against a cluster."""
