"""What one group has placed at the table indices whose function is made at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.program.operations import SetSlot

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Store


class SlotFunctions:
    """What one group has placed at the pool's indices. Belongs to the group's thread.

    A store frees no instance by itself, so the instance of a slot that is cleared serves the next closure of its signature.
    """

    __slots__ = ("_idle", "_invokers", "_placed", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._placed: dict[int, tuple[CompiledModule, Callable[..., object]]] = {}
        self._idle: dict[CompiledModule, list[Callable[..., object]]] = {}
        self._invokers: dict[CompiledModule, Callable[..., int]] = {}

    def set(self, operation: SetSlot) -> None:
        """Place a function, as an operation says; its code is not None.

        Raises:
            InstantiationError: the engine refuses an instance.
        """
        code, address = operation.code, operation.address
        assert code is not None
        placed = self._placed.get(address)
        if placed is not None and placed[0] is code:
            place = placed[1]
        else:
            idle = self._idle.get(code)
            place = idle.pop() if idle else self._instantiate(code)
            self.forget(address)
        place(address, operation.first, operation.second)
        self._placed[address] = code, place

    def _instantiate(self, code: CompiledModule) -> Callable[..., object]:
        from dl.glue.trampolines import PLACE, PLACE_TYPE, TRAMPOLINE  # noqa: PLC0415  not every program makes functions

        return self._store.instantiate(code, TRAMPOLINE).function(PLACE, PLACE_TYPE)

    def invoker(self, code: CompiledModule) -> Callable[..., int]:
        """Return the function of an invoker's instance that is in no table index."""
        known = self._invokers.get(code)
        if known is None:
            from dl.glue.trampolines import FUNCTION, INVOKER_TYPE, TRAMPOLINE  # noqa: PLC0415  as above

            known = self._invokers[code] = self._store.instantiate(code, TRAMPOLINE).function(
                FUNCTION, INVOKER_TYPE
            )
        return known

    def forget(self, address: int) -> None:
        """Keep the instance of an index that no longer holds its function, for the next of its signature."""
        placed = self._placed.pop(address, None)
        if placed is not None:
            self._idle.setdefault(placed[0], []).append(placed[1])
