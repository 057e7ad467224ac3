"""Group `upgrade`: what connections notice while agents are replaced and killed.

`group` drives, `load` runs in the client's pod, `echo` in the server's.
"""
