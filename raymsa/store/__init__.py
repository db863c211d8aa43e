"""The experiment store: jobs, tasks, runs and every number a run gave. SQLite by default, PostgreSQL by URL.

engine.py opens it, tables.py says what is in it, records.py writes, queries.py reads; raymsa/queue.py hands out tasks.
"""

from raymsa.store.engine import Store

__all__ = ["Store"]
