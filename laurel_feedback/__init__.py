"""People: a database of items, leases and votes, the pages people rate on, and what is made of
their answers (extra `feedback`).
"""
