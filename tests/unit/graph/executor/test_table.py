import importlib
import pkgutil

from serveprune.compression.pruning.coupling.table import RULES
from serveprune.graph.executor import operators
from serveprune.graph.executor.operators.control_flow import FLOW
from serveprune.graph.executor.table import OPERATORS


def test_executor_computes_every_operator_when_the_coupling_table_knows_it() -> None:
    assert not RULES.keys() - OPERATORS.keys() - FLOW.keys()


def test_operators_of_all_families_are_in_the_table_when_each_has_one_home() -> None:
    families = [
        importlib.import_module(f"{operators.__name__}.{found.name}")
        for found in pkgutil.iter_modules(operators.__path__)
    ]
    names = [name for family in families for name in getattr(family, "OPERATORS", ())]
    assert sorted(names) == sorted(OPERATORS)
    assert not FLOW.keys() & OPERATORS.keys()
