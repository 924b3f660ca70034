"""The command `serverchange`: one command a process, the supervisor, the demo, and tools for operators.

Reads, Decides, Writes: what the command at hand says in its `--help`.
"""
