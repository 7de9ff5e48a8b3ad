"""Owns telling the user's own servers what became of jobs: endpoints, deliveries, signatures.

It must not know why a job changed; it reads the outbox.
"""
