"""The seeded changes are changes, each to one place, and the modules and tests they are tried on are there."""

import ast

import pytest

from tests.mutants.__main__ import MODULES, ROOT, dealt, mirrored
from tests.mutants.changes import changed, changes

SOURCE = b'''
def taken(lock, many, limit=3):
    """More than enough?"""
    with lock:
        many.append(limit)
    if many and limit < 4:
        raise ValueError(f"\xc3\xa9 {limit + 1}", limit)
    return sorted(many, key=taken)
'''


def test_each_kind_of_change_is_made_in_its_place() -> None:
    found = {(change.kind, change.line, change.before, change.after) for change in changes(SOURCE)}
    assert found == {
        ("constant", 2, "3", "4"),
        ("lock", 4, "lock", "__import__('contextlib').nullcontext()"),
        ("statement", 5, "many.append(limit)", "pass"),
        ("and/or", 6, "many and limit < 4", "(many or limit < 4)"),
        ("comparison", 6, "limit < 4", "(limit <= 4)"),
        ("constant", 6, "4", "5"),
        ("statement", 7, 'raise ValueError(f"é {limit + 1}", limit)', "pass"),
        ("argument", 8, "taken", "None"),
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_change_of_a_module_is_another_program_that_can_be_read(module: str) -> None:
    source = (ROOT / module).read_bytes()
    plain = ast.dump(ast.parse(source))
    for change in changes(source):
        assert ast.dump(ast.parse(changed(source, change))) != plain, change
    assert all((ROOT / path).is_file() for path in mirrored(module))


def test_one_seed_deals_the_same_changes_and_no_module_waits_for_another() -> None:
    few = MODULES[:5]
    tried = dealt(few, count=12, seed=3)
    assert tried == dealt(few, count=12, seed=3) != dealt(few, count=12, seed=4)
    assert sorted(len(one) for one in tried.values()) == [2, 2, 2, 3, 3]
