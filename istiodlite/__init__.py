"""The control plane: Kubernetes objects in, xDS resources and certificates out."""
