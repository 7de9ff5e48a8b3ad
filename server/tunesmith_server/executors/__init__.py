"""Starts, observes and stops runs on some kind of machine.

It must not know jobs, files or the database.
"""
