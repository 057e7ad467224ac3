"""`ambientctl`: the user's command line for the local mesh.

In: commands and manifests. Out: text for people (or JSON), one line per error, exit status 0 only if what
was asked for has happened. Talks to the mesh's supervisor (`daemonset.local.control`) and to the agents'
admin interface; holds no state of its own.
"""
