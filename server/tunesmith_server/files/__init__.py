"""Dataset files: upload, check, list, read, delete.

It must not know how training reads them.
"""
