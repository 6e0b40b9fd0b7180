"""What a rendezvous reports about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RendezvousStatistics"]


@dataclass(frozen=True)
class RendezvousStatistics:
    """A snapshot of a rendezvous.

    Attributes:
      detached, host, guest: members in each state; they change while being counted.
      committed: operations committed.
      log_entries: operations that the log holds, because some group, or a new one, has yet to make them.
      barriers: commits attempted; those that gave up count too.
      catch_ups: times a replica replayed one or more operations.
      replay_failures: replicas that ended because a replay failed.
      interrupts: times the engine was interrupted; without a GIL, of two threads that do so in one moment one may be missed.
      barrier_seconds: gate closed to gate open, of the last 1,024 commits, oldest first.
    """

    detached: int
    host: int
    guest: int
    committed: int
    log_entries: int
    barriers: int
    catch_ups: int
    replay_failures: int
    interrupts: int
    barrier_seconds: tuple[float, ...]
