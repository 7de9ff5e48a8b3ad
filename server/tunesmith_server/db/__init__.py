"""The metadata database: engine, tables and migrations.

It must not know what the rows mean to a domain.
"""
