"""SharedBudget that threads share: never more than there is, and nobody waits for ever."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from exchange.shared_budget import SharedBudget


def test_room_is_taken_while_it_lasts_and_again_when_it_is_given_back() -> None:
    room = SharedBudget(10)
    assert [room.take(4, wait=False) for _ in range(3)] == [True, True, False]
    assert room.take(2, wait=False)
    room.give(4)
    assert room.take(4, wait=True)
    assert not room.take(1, wait=False)


def test_what_is_larger_than_the_room_gets_all_of_it_alone() -> None:
    room = SharedBudget(10)
    assert room.take(25, wait=True)
    assert not room.take(1, wait=False)
    room.give(25)
    assert room.take(1, wait=False)
    assert not room.take(25, wait=False)


def test_who_waits_goes_before_who_has_some_already() -> None:
    room = SharedBudget(10)
    room.take(9, wait=False)
    waiting = threading.Thread(target=room.take, args=[5], kwargs={"wait": True})
    waiting.start()
    while room.take(1, wait=False):  # until the other one waits
        room.give(1)
    room.give(9)
    waiting.join(10)
    assert not waiting.is_alive()
    assert room.take(5, wait=False)
    assert not room.take(1, wait=False)


def test_many_threads_never_take_more_than_there_is_and_all_get_through() -> None:
    room, lock = SharedBudget(10), threading.Lock()
    held, most = [0], [0]

    def work(seed: int) -> int:
        moments, mine, done = random.Random(seed), [], 0
        while done < 200:
            count = moments.randint(1, 6)
            if room.take(count, wait=not mine):
                mine.append(count)
                with lock:
                    held[0] += count
                    most[0] = max(most[0], held[0])
            else:
                given = mine.pop(0)
                with lock:
                    held[0] -= given
                room.give(given)
                done += 1
        for given in mine:
            with lock:
                held[0] -= given
            room.give(given)
        return done

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [200] * 6
    assert 6 < most[0] <= 10
    assert held == [0]
