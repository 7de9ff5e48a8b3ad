"""One run: data in, weights out.

It must not know databases, web frameworks or storage keys.
"""
