from collections.abc import Iterator

import pytest

from compute.base.contention import MOST_CONTENTION, Control, contention


def measured(*found: float) -> Control:
    values: Iterator[float] = iter(found)
    return Control(lambda: next(values))


@pytest.mark.parametrize(
    ("found", "busy"),
    [((1.0, 1.0), False), ((1.0, MOST_CONTENTION), False), ((1.0, 1.3), True), ((1.3, 1.0), True)],
)
def test_a_machine_is_busy_if_it_was_so_before_or_is_so_after(found: tuple[float, ...], busy: bool) -> None:
    control = measured(*found)
    assert control.is_busy() is busy
    assert control.found == list(found)


def test_a_long_run_is_looked_at_between_its_parts() -> None:
    control = measured(1.0, 1.0, 2.0, 1.0)
    assert [control.is_busy() for _ in range(3)] == [False, True, True]


def test_the_words_say_what_was_found_and_what_to_do() -> None:
    control = measured(1.0, 2.25)
    assert control.is_busy()
    assert control.words().startswith("busy: ")
    assert "1.00, then 2.25 times" in control.words()
    assert "try again" in control.words()


def test_no_thread_takes_less_than_the_processor_time_that_it_had() -> None:
    assert contention() >= 0.99
