"""Owns the nouns of the client, one module each.
Must not know how requests are sent.
"""
