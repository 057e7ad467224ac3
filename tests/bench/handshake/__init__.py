"""Group `handshake`: what a TLS handshake of the engine costs, beside the same library alone."""
