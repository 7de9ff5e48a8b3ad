"""Revisions, model names and base models: what may be served, and proof of what it is.

It must not know engines.
"""
