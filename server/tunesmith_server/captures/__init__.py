"""Owns captures: chat completions that keys have opted in to have kept, and the datasets made of them.

It must not know engines or how a gateway redacts: what arrives here is fit to be kept.
"""
