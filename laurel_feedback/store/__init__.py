"""The database: settings, tables, leases and answers, accounts, the audit log, backups."""
