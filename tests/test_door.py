"""The public door: every name opens, and planning or writing a policy loads no torch."""

import subprocess
import sys

import pytest

import synccache

LOADED = "import sys; print(sorted({'torch', 'ortools', 'sympy'} & set(sys.modules)))"


def loaded_after(code: str) -> str:
    """What a fresh interpreter has loaded of the heavy libraries after running `code`."""
    command = [sys.executable, "-c", f"{code}\n{LOADED}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", synccache.__all__)
def test_every_public_name_opens(name: str) -> None:
    assert getattr(synccache, name) is not None
    assert name in dir(synccache)


def test_planning_and_policies_load_neither_torch_nor_a_solver() -> None:
    assert loaded_after("import synccache.planner, synccache.policies") == "[]"


def test_the_cp_sat_planner_loads_no_torch() -> None:
    assert loaded_after("import synccache.planner.cp_sat") == "['ortools']"


def test_importing_the_sub_module_calibrate_keeps_the_function_of_that_name() -> None:
    code = "import synccache.calibrate, synccache; assert synccache.calibrate.__code__"

    loaded_after(code)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        synccache.nonsense  # noqa: B018
