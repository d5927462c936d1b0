"""Feedback of people: the database, the pages to rate on, statistics, import and export.

Needs the extra `feedback`.
"""
