"""`import dynapath` is cheap, and its namespaces arrive when asked for."""

import subprocess
import sys
from types import ModuleType

import pytest

import dynapath as dp


def loaded_by(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_dynapath_loads_nothing_heavy():
    heavy = {"anndata", "matplotlib", "numba", "numpy", "pandas", "scanpy", "scipy", "scvi", "sklearn", "torch"}
    loaded = loaded_by("import dynapath")
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("dynapath.")}


def test_namespaces_wait_with_scvi_and_only_plots_load_matplotlib():
    """All in one interpreter: what none of them loads after the others, each of them does not load alone."""
    others = "\n".join(f"dynapath.{namespace}" for namespace in dp.__all__ if namespace != "pl")
    assert not loaded_by(f"import dynapath\n{others}") & {"scvi", "matplotlib.pyplot"}
    with_plots = loaded_by("import dynapath\ndynapath.pl")
    assert "scvi" not in with_plots
    assert "matplotlib.pyplot" in with_plots


@pytest.mark.parametrize("namespace", dp.__all__)
def test_a_namespace_offers_what_it_lists(namespace):
    module = getattr(dp, namespace)
    assert isinstance(module, ModuleType)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"dp.{namespace}.{name} has no docstring"


def test_dir_lists_the_namespaces():
    assert set(dp.__all__) <= set(dir(dp))


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(AttributeError, match="'tools'.*datasets, dynamics"):
        _ = dp.tools


def test_the_version_is_that_of_the_installed_package():
    assert dp.__version__.split(".")[0].isdigit()
