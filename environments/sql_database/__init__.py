"""Questions about generated databases, or about your own, answered with a SQL query."""

from environments.sql_database.environment import SqlDatabase

__all__ = ["SqlDatabase"]
