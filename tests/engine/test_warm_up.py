"""Compiling many programs at a time: what comes first, what fails, what an interrupt leaves."""

import subprocess
import sys
import threading
import time

import pytest

from rfjax.engine.warm_up import Program, UnderWay, compile_all
from rfjax.errors import ConfigError


def program(name, compile):
    return Program(name, lambda: compile)


def test_programs_are_compiled_side_by_side():
    meeting = threading.Barrier(3, timeout=20)  # breaks unless all are there at once
    done = compile_all([program(name, meeting.wait) for name in "abc"], threads=3)
    assert [one.name for one in done.programs] == ["a", "b", "c"]
    assert all(0 <= one.seconds <= done.seconds for one in done.programs)
    assert str(done).startswith("3 programs in ")
    assert compile_all([]).programs == ()


def test_no_more_at_a_time_than_asked():
    running, most = [], []

    def compile():
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    compile_all([program(str(i), compile) for i in range(6)], threads=2)
    assert max(most) == 2
    for threads in (0, True, 1.5):
        with pytest.raises(ConfigError, match="threads: got"):
            compile_all([], threads=threads)


def test_tracing_takes_turns_while_others_compile():
    tracing, most, others = [], [], threading.Event()

    def trace():
        tracing.append(1)
        most.append(len(tracing))
        time.sleep(0.01)
        tracing.pop()
        if len(most) == 4:
            others.set()
        return lambda: others.wait(20)  # the first is not compiled before the last is traced

    compile_all([Program(str(i), trace) for i in range(4)], threads=4)
    assert max(most) == 1
    assert others.is_set()


def test_the_first_failure_is_raised_and_nothing_is_begun_after_it():
    begun, failed = [], threading.Event()

    def fail():
        failed.set()
        raise RuntimeError("no such instruction")

    def wait():
        begun.append(1)
        assert failed.wait(20)
        time.sleep(0.05)

    programs = [program("a", wait), program("b", fail), *[program("c", wait)] * 20]
    with pytest.raises(RuntimeError, match="no such instruction"):
        compile_all(programs, threads=2)
    assert len(begun) < 20


def test_who_calls_a_program_waits_for_it_and_fails_by_itself():
    under_way, ready, done = UnderWay(), threading.Event(), []

    def compile():
        assert ready.wait(20)
        done.append(1)

    def fail():
        raise RuntimeError("no such instruction")

    under_way.begin({"good": program("a", compile), "bad": program("b", fail)})
    under_way.wait("bad")  # says nothing: the call will
    under_way.wait("another")
    assert not done
    ready.set()
    under_way.wait("good")
    assert done == [1]
    under_way.wait("good")


_INTERRUPTED = """
import _thread, atexit, time
from rfjax.engine.warm_up import Program, compile_all

begun = []
def compile():
    begun.append(1)
    _thread.interrupt_main()
    time.sleep(0.3)
try:
    compile_all([Program("a", lambda: compile)] * 50, threads=2)
except KeyboardInterrupt:
    atexit.register(lambda: print(len(begun)))  # once all threads have ended
"""


def test_after_an_interrupt_nothing_is_begun():
    """The process waits for what is being compiled, and for no more."""
    run = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert 1 <= int(run.stdout) < 50
