"""A group: one thread's instances, and its way into guest code and out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from dl.errors import LinkerClosedError, LinkerUsageError, SymbolNotFoundError
from dl.groups.errors import check_process, raises_dl_errors
from dl.groups.instances import Instances
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import Symbol
from dl.program.limbo import Subject
from dl.program.operations import DlOperation, LoadModules, SetSlot, UnloadModules
from dl.program.program import Program
from dl.wasm.types import FuncType
from memory import Uncopied
from threads import DETACHED, GUEST, Replica

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

NO_THREAD = -1
"""Owner of a group that no thread has now; no thread's identity is negative."""

_MOST_ANSWERS = 1 << 16
"""Answers that a group keeps; one is some 200 bytes."""

_RED_ZONE_BYTES = 128
"""What LLVM lets a function use below the stack pointer without moving it (WebAssemblyFrameLowering, RedZoneSize)."""


class GuestSignals(Protocol):
    """Signals for a thread of the guest, as its safe points ask for them; see `dl.wasix.signals`."""

    def pending(self, group: Group) -> bool:
        """Whether a group's thread has signals to handle."""

    def deliver(self) -> bool:
        """Handle what was sent to the calling thread, in a host call; returns whether there was anything."""


class NoSignals:
    """A program to which nothing sends signals."""

    def pending(self, _group: Group) -> bool:
        """Return False."""
        return False

    def deliver(self) -> bool:
        """Return False."""
        return False


class Group(Uncopied):
    """One thread's instances of every linked module, and its part in the protocol between threads.

    Only the thread that owns it calls into it, except `replica.interrupt_with`.

    Args:
        program: what all groups share.
        name: the thread's name in messages.
        signals: those of the guest.
        stack_pointer: upper end of the thread's shadow stack, bytes; None for the main module's own.
        main_tls: where the main module's thread-local block of this thread is, bytes; None to allocate one.

    Attributes:
        replica: this group's part in the protocol.
        instances: its store.
        owner: identity of the owning thread; `NO_THREAD` while no thread has it, 0 when closed.
        functions: the API's callables of this group, by module and symbol; those of modules that are gone are closed.
        answers: what the API has answered to look-ups that no module asks for, by handle and name; see `answers_stand`.
        view: what the API shows of it; read and written by the API alone.
        dl_error: what the thread's last failed call of `dl_ext` was, until the guest asks for it; read and written by
            `dl.wasix.dl_ext` alone.
        visits: how many times its thread has entered guest code from outside; see `dl.program.limbo`.
        applying: whether its thread applies an operation as the instigator.
        must_notice: whether a signal has come to the process that its thread, the main one, may compute on without noticing:
            Python runs signal handlers between two bytecodes only.
    """

    def __init__(
        self,
        program: Program,
        name: str,
        signals: GuestSignals,
        *,
        stack_pointer: int | None = None,
        main_tls: int | None = None,
    ) -> None:
        self._program = program
        self._signals = signals
        self.name = name
        self.owner = get_ident()
        self.functions: dict[tuple[int, str], Any] = {}
        self.answers: dict[tuple[int, str], Any] = {}
        self._answers_of = -1
        self._changes = program.state.changes.reader()
        self._exported: dict[tuple[int, str], Callable[..., Any]] = {}  # what `call_export` has called
        self.view: Any = None
        self.applying = False
        self.must_notice = False
        self.visits = 0
        self.dl_error = ""
        self._applies_from_outside = False
        self.replica: Replica[DlOperation] = Replica(name, self._replay)
        self.instances = Instances(program, name, self, stack_pointer=stack_pointer, main_tls=main_tls)
        # Not before: the replica has not joined, and an interrupt that is meant for other threads would end it here.
        if program.engine.capabilities.interrupts:
            self.instances.on_interrupt(self._interrupted)

    def __repr__(self) -> str:
        return f"<Group {self.name!r}>"

    @property
    def is_outside_guest(self) -> bool:
        """Whether its thread runs no guest code, nor a host call of it; that of an operation itself does not count."""
        return self.replica.state == DETACHED or self._applies_from_outside

    def may_run(self, subject: Subject) -> bool:
        """Whether code of modules that are gone may be on its thread's stack; see `dl.program.limbo`."""
        if self.owner == get_ident():  # which may have returned from them, and never leave guest code
            self.instances.look_again(subject)
        return self.instances.may_run(subject)

    def is_unaware(self) -> bool:
        """Whether its thread may compute without having noticed a signal; takes no lock, since signal handlers ask."""
        return self.must_notice and (self.replica.state == GUEST or bool(self.replica.replaying))

    def set_attention(self, *, wanted: bool) -> None:
        """Say whether its thread's next call of the system interface must come to the host; from any thread."""
        if self.instances.wasi is not None:
            self.instances.wasi.set_attention(wanted=wanted)

    # safe points

    def _interrupted(self) -> None:
        """A safe point inside guest code: apply operations and handle signals.

        The engine has safe points in all code, also in the small functions of glue by which the host looks at a store while its
        thread is outside guest code (the length of a table). There it has none for the protocol: what waits to be noticed is
        noticed when the thread next enters guest code.

        Raises:
            BaseException: the guest must be unwound.
        """
        self.must_notice = False
        if self.replica.state != GUEST and not self.replica.replaying:
            return
        sampling = self._program.sampling
        if sampling is not None:
            sampling(self)
        self.replica.safe_point()
        if self.replica.replaying or not self._signals.pending(self):
            return
        pointer = self.instances.stack_pointer()
        if pointer is None:
            return
        # The interrupted function may use the red zone below the stack pointer, if it calls nothing.
        self.instances.set_stack_pointer(pointer - _RED_ZONE_BYTES)
        self.replica.enter_host()
        self._signals.deliver()
        self.replica.exit_host()
        self.instances.set_stack_pointer(pointer)

    # operations

    def apply_first(self, operation: DlOperation) -> None:
        """Make an operation's change as its instigator, before any other group.

        Raises:
            DlError: it cannot be made.
        """
        with self._entered_to_apply():
            self.instances.first = self.applying = True
            try:
                operation.apply(self.instances)
            finally:
                self.instances.first = self.applying = False
        self._forget_functions(operation)

    def apply_committed(self, operation: UnloadModules) -> None:
        """Make an operation that its thread has committed, as the first thing afterwards.

        Raises:
            BaseException: it failed. It is made nevertheless, at the second try; or the group has ended.
        """
        try:
            operation.apply(self.instances)
        except BaseException:
            try:
                operation.apply(self.instances)  # what was done already is done again, to the same end
            except BaseException as error:
                self._program.rendezvous.leave(self.replica, f"it could not unload a library: {error}")
                raise
            raise
        finally:
            self._forget_functions(operation)

    @contextmanager
    def _entered_to_apply(self) -> Iterator[None]:
        """Enter guest code for what an operation runs there."""
        previous = self.replica.enter_guest()
        self._applies_from_outside = previous == DETACHED
        try:
            yield
        finally:
            self._applies_from_outside = False
            self.replica.leave_guest(previous)

    def _replay(self, _sequence: int, operation: DlOperation) -> None:
        operation.apply(self.instances)
        self._forget_functions(operation)

    def take_back(self, operation: LoadModules) -> None:
        """Undo a load that this group has applied, completely or in part, and no other group has seen."""
        undo = UnloadModules.of(operation.modules)
        self._forget_functions(undo)
        try:
            with self._entered_to_apply():
                undo.apply(self.instances)
        except BaseException:
            if self._program.ended is None:
                raise
            self.instances.forget(undo.modules)  # nobody runs what the table holds

    def set_back(self, former: SetSlot) -> None:
        """Set a table index to what it held before a change that is taken back."""
        with self._entered_to_apply():
            former.apply(self.instances)

    def _forget_functions(self, operation: DlOperation) -> None:
        if isinstance(operation, UnloadModules):
            self.answers.clear()
            gone = {module.handle for module in operation.modules}
            for exported in [key for key in self._exported if key[0] in gone]:
                del self._exported[exported]
            for key in [k for k, function in self.functions.items() if function.module in gone]:
                self.functions.pop(key).close()

    # into the guest

    def check_owner(self) -> None:
        """Check that the calling thread may enter this group's guest code.

        Raises:
            LinkerClosedError: the group is closed.
            ProgramForkedError: the calling thread is in a forked child.
            LinkerUsageError: it belongs to another thread.
        """
        check_process(self._program.rendezvous.process)
        if self.owner == get_ident():
            return
        if not self.owner:
            raise LinkerClosedError(f"instance group {self.name!r} is closed")
        raise LinkerUsageError(
            f"instance group {self.name!r} belongs to another thread; use Linker.attach() to give this one its own"
        )

    @raises_dl_errors
    def synchronize(self) -> None:
        """Make all committed operations in this group now; by itself it does so before it next runs guest code.

        Raises:
            ReplayFailedError: one of them failed; the group has ended.
            GroupEndedError: the group has ended before.
            LinkerUsageError: called from another thread.
        """
        self.check_owner()
        self.replica.synchronize()

    def found(self, look_up: Callable[[], Symbol]) -> Symbol:
        """Return what a look-up finds, in a group that has the symbol's module.

        The look-up sees what is committed, which may be more than what this group had made when it began; and what it has
        found may be unloaded until the group has followed.

        Args:
            look_up: looks the symbol up, or raises.

        Raises:
            LinkerUsageError: called from another thread.
        """
        self.check_owner()
        while True:
            symbol = look_up()
            if self.replica.applied != self.replica.gate.version:  # as in `answers_stand`
                self.synchronize()
            if self.instances.holds(symbol.module):
                return symbol

    def answers_stand(self) -> bool:
        """Whether a look-up may be answered from `answers`: `found` would find the same, and has nothing to do before.

        One comparison of numbers says that no operation, interrupt, end or fork waits to be noticed, as for every entry into
        guest code; see `threads.Replica`. Another says that what look-ups find has not changed; see `LinkerState.changes`.
        Both are read by what is this thread's own.
        """
        replica = self.replica
        return (
            self._answers_of == self._changes.value
            and replica.applied == replica.gate.version
            and self.owner == get_ident()
        )

    def keep_answer(self, handle: int, name: str, answer: Any, changes: int) -> None:
        """Keep what a look-up was answered, for as long as nothing changes; as many as fit.

        Args:
            handle: where it was looked for.
            name: the symbol.
            answer: what was found.
            changes: `LinkerState.changes` before it was looked up.
        """
        if self._answers_of != changes or len(self.answers) >= _MOST_ANSWERS:
            self.answers.clear()
            self._answers_of = changes
        self.answers[handle, name] = answer

    def call_export(self, module: LinkedModule, name: str, kind: FuncType, *arguments: Any) -> Any:
        """Call an exported function of a module by name, symbol or not.

        Raises:
            SymbolNotFoundError: the module exports no such function of this signature.
        """
        export = module.wasm.exports.get(name)
        if export is None or export.type != kind:
            raise SymbolNotFoundError(name, [module.name])
        self.check_owner()
        if not self.instances.holds(module.handle):
            self.synchronize()  # else what enters the guest does
        function = self._exported.get((module.handle, name))
        if function is None:
            function = self._exported[module.handle, name] = self.instances.function(
                module.handle, name, kind
            )
        return self.in_guest(function, *arguments)

    def call_invoker(self, code: CompiledModule, *arguments: int) -> int:
        """Call the invoker of a signature; see `dl.glue.trampolines.invoker_module`."""
        return int(self.in_guest(self.instances.invoker(code), *arguments))

    def call_pointer(self, address: int, argument: int | None) -> None:
        """Call the function at a table index; see `Instances.call_pointer`."""
        self.synchronize()
        self.in_guest(self.instances.call_pointer, address, argument)

    @raises_dl_errors
    def in_guest(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of this group's store, up to date; what every call into the guest does.

        `dl.group.GuestFunction` has the same steps written out, for speed.
        """
        previous = self.replica.enter_guest()
        try:
            if previous == DETACHED:
                self.visits += 1
                stack_pointer = None
            else:
                stack_pointer = self.instances.stack_pointer()
            try:
                return function(*arguments)
            except BaseException:
                self.unwound(stack_pointer)
                raise
        finally:
            self.replica.leave_guest(previous)

    def unwound(self, stack_pointer: int | None) -> None:
        """Set the shadow stack pointer right after a guest call that ended by an exception.

        Guest functions lower it at their start and raise it at their end, which an exception skips. A guest function
        around an inner call cannot be relied on to set its own: one without a frame does not.

        Args:
            stack_pointer: what it was before an inner call; None for the thread's outermost call, where it is known.
        """
        if self.owner:
            self.instances.set_stack_pointer(stack_pointer)

    def address_of(self, symbol: Symbol) -> int:
        """Return a symbol's address as this thread sees it; see `Instances.address_of`."""
        return self.instances.address_of(symbol)

    def close(self) -> None:
        """Free the group's instances, and its thread-local blocks; idempotent, and nothing in a forked child.

        Raises:
            LinkerUsageError: it is another thread's, or the calling thread is inside its guest code.
        """
        if not self.owner or not self._program.rendezvous.process.is_this_one():
            return
        if self.owner not in (get_ident(), NO_THREAD) or self.replica.state != DETACHED:
            raise LinkerUsageError(
                f"instance group {self.name!r} is in use; its own thread closes it, outside guest code"
            )
        self._program.rendezvous.leave(self.replica, "it was closed")
        self.owner = 0
        self.view = None
        self.functions.clear()
        self.answers.clear()
        self._exported.clear()
        self.instances.close()
