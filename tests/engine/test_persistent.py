"""Old versions stay what they were, whatever becomes of newer ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.engine.persistent import PersistentDict, PersistentList


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.booleans()), max_size=20))
@settings(deadline=None, derandomize=True)
def test_every_version_stays_what_it_was(batches):
    """Each batch changes any version there is, and adds one."""
    lists = [(PersistentList([0] * 5), [0] * 5)]
    dicts = [(PersistentDict({}), {})]
    for number, (origin, at, more) in enumerate(batches, start=1):
        version, expected = lists[origin % len(lists)]
        changes = {at: number, (at + 1) % 5: -number} if more else {at: number}
        changed = [changes.get(i, value) for i, value in enumerate(expected)]
        lists.append((version.replaced(changes), changed))
        version, expected = dicts[origin % len(dicts)]
        if at in expected:
            changed = {k: v for k, v in expected.items() if k != at}
            dicts.append((version.without([at]), changed))
        else:
            dicts.append((version.added({at: number}), {**expected, at: number}))
    for version, expected in (*lists, *dicts, *reversed(lists), *reversed(dicts)):
        assert version.contents == expected


def test_nothing_to_change_is_the_same_version():
    numbers, names = PersistentList([1]), PersistentDict({1: 2})
    assert numbers.replaced({}) is numbers
    assert names.added({}) is names
    assert names.without([]) is names


def test_an_interrupt_in_a_batch_leaves_the_version_as_it_was():
    class Interrupting(dict):
        """Raises after the first of its items was taken for the change itself."""

        def items(self):
            yield from list(super().items())[:1]
            raise KeyboardInterrupt

    numbers = PersistentList([1, 2, 3])
    with pytest.raises(KeyboardInterrupt):
        numbers.replaced(Interrupting({0: 7, 1: 8}))
    assert numbers.contents == [1, 2, 3]
