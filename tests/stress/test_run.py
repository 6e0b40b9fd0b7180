"""Many threads do everything at once to one program, and all instance groups are equal in the end."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator

import pytest

import dl
from dl.cli import main
from dl.stress.run import GRACE_SECONDS, Patience, run_stress

SHORT_SECONDS = 12.0


def reports_of(threads: int, seconds: float) -> Iterator[dl.StressReport]:
    """Run again and again, each time twice as long: how much is done in some time depends on the machine."""
    while True:
        seed = random.SystemRandom().getrandbits(32)
        print(f"dlrun stress --threads {threads} --seconds {seconds:g} --seed {seed}")
        yield run_stress(threads, seconds, seed, print)
        seconds *= 2


class TestStress:
    @pytest.mark.soak
    @pytest.mark.timeout(float(os.environ.get("DL_SOAK_SECONDS", "0")) + 300)
    def test_64_threads_end_with_equal_groups(self) -> None:
        """64 threads that open, call, wait, spin, trap and end find nothing wrong and have equal groups at the end."""
        seconds = float(os.environ.get("DL_SOAK_SECONDS", "0")) or SHORT_SECONDS
        total = committed = 0
        ends: set[str] = set()
        for found in reports_of(64, seconds):
            assert found.failures == ()
            assert found.compared >= 32
            total, committed = total + found.total, committed + found.committed
            ends |= set(found.ends)
            if total > 1000 and committed > 50 and ends >= {"returned", "raised", "trapped", "cancelled"}:
                break

    @pytest.mark.parametrize("threads", [1, 2, 8])
    def test_few_threads_end_with_equal_groups(self, threads: int) -> None:
        """So do few threads, where other orders are likely."""
        total = 0
        for found in reports_of(threads, 2.0):
            assert found.failures == ()
            total += found.total
            if total > 50:
                break

    def test_a_slow_end_is_no_hang(self) -> None:
        """While something moves a run may take long to come to its end, but not for ever; when nothing moves it is hung."""
        patience = Patience(1000.0)
        times = [1000.0 + 0.9 * GRACE_SECONDS * step for step in range(11)]
        assert not any(patience.is_over(time, ("moved", time)) for time in times)
        assert not patience.is_over(times[-1] + 0.9 * GRACE_SECONDS, ("moved", times[-1]))
        assert patience.is_over(times[-1] + 1.1 * GRACE_SECONDS, ("moved", times[-1]))
        assert patience.is_over(1000.0 + 11 * GRACE_SECONDS, "moved again")

    def test_thread_number_out_of_range(self) -> None:
        """A number of threads that the generated program has no stacks for is refused."""
        with pytest.raises(ValueError, match="1 to 192"):
            run_stress(193, 1)


class TestCommand:
    def test_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`dlrun stress` says what was done, repeats the seed, and ends with 0 when nothing went wrong."""
        assert main(["stress", "--threads", "4", "--seconds", "1.5", "--seed", "7"]) == 0

        printed = capsys.readouterr()
        assert re.search(r"seed +7\b", printed.out)
        assert "barriers" in printed.out
        assert " threads" in printed.err
