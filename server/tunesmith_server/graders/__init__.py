"""Owns graders: rules that turn a model's answer into a number, checked and tried before training uses them.

It must not know jobs.
"""
