"""What people rate and what they said: settings, tables, leases and answers, accounts, the audit
log, backups.
"""
