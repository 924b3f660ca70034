"""`serverchange doctor`: examines everything that a fleet stands on and says, for each finding, what to do.

`command` is the command, `findings` its words; a module for each thing examined: settings, Kafka, PostgreSQL with the
tables, the platform. It reads only: no topic, table or offset is altered.
"""
