"""Owns deployments: names of a project's own that stand for its models and move from one to another.

It must not know engines: gateways follow the names and switch when they are ready to.
"""
