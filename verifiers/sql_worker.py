"""The worker of the SQL verifier: judges a query against a reference. Started by `verifiers.worker`.

SQLite's own limits stop most hostile queries here. Some spend their time where SQLite looks at no limit (while it
compiles them, inside one long function call): there the parent's time limit kills this process.
"""

from __future__ import annotations

from time import process_time

from verifiers import sql_run
from verifiers.sql_judge import Judge
from verifiers.sql_run import Database
from verifiers.worker import serve

HEAP = 512 << 20  # bytes that SQLite may allocate


def main() -> None:
    sql_run.clock = process_time  # on a busy machine a query loses nothing to its neighbours
    # One limit for all connections of the process; later it could be set higher only by a PRAGMA, which is denied.
    Database("2000-01-01").connection.execute(f"PRAGMA hard_heap_limit = {HEAP}")
    serve(Judge().judge)
