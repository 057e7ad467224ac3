"""Equipment shared by tests: a certificate mint, raw HTTP/2 peers, fault injection, canary, leak check."""
