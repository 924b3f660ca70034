"""The command `serverchange`: one command a process, the supervisor, the demo, and tools for operators.

Reads, Decides, Writes: what the command at hand says in its `--help`.
"""

import importlib.util
import sys

# The base install is the SDK alone, and pip makes the console script all the same: one sentence, no traceback.
if importlib.util.find_spec("typer") is None:
    sys.exit("error: the command needs more than the SDK: pip install 'serverchange[services]'")
