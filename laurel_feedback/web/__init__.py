"""The web pages and the interface for applications.

Annotators rate, coordinators look after batches, applications send what their users prefer.
"""
