"""Group `enrol`: pods that come to an agent and go, as fast as a CNI agent can tell of them."""
