"""How older databases become this version's, run by Alembic when a database is opened."""
