"""The API page of the documentation and the package list the same names."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

import dynapath as dp

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def listed() -> dict[str, list[str]]:
    """Names on the page by namespace: the indented `namespace.name` lines of its autosummary blocks."""
    names = defaultdict(list)
    for namespace, name in re.findall(r"^   (\w+)\.(\w+)$", PAGE.read_text(), flags=re.MULTILINE):
        names[namespace].append(name)
    return names


@pytest.mark.parametrize("namespace", dp.__all__)
def test_the_page_lists_all_public_names_of_a_namespace_once(namespace):
    assert sorted(listed()[namespace]) == sorted(getattr(dp, namespace).__all__)


def test_the_page_lists_no_other_namespace():
    assert set(listed()) <= set(dp.__all__)
