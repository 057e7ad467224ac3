"""Group `control`: what a large mesh costs the control plane and a node agent that hears of all of it.

5,000 services and 50,000 pods. `objects` makes them; `server` is the control plane without its source, `streams` are
hundreds of agents that only read, `agent` is one of ours without its data plane; `group` runs them and measures.
`cluster` puts the same objects into an API server, `planes` runs ours and istiod from there.
"""
