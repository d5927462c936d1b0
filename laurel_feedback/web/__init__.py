"""The pages: annotators rate, coordinators look after batches, applications send what their users
prefer.
"""
