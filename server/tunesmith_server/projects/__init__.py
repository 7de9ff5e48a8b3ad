"""Projects and their API keys.

It must not know what the keys are used for.
"""
