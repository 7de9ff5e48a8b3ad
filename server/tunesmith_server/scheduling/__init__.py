"""Which job runs when, and what became of runs that fell silent.

It must not know the wire of any client.
"""
