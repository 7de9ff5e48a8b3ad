"""Who did what: one line for each call that changed something or was refused for lack of a right.

It must not know what a call did, only its name, its target and its outcome.
"""
