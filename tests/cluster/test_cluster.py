"""`dl.cluster` on Dask's own scheduler, with worker processes on loopback, which are killed."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")

import dask  # noqa: E402
from distributed import Client, KilledWorker, LocalCluster, wait  # noqa: E402

import dl  # noqa: E402
import dl.cluster  # noqa: E402
from dl.cluster import client as own  # noqa: E402
from dl.cluster.worker import HeldModule, HeldProgram, Run  # noqa: E402
from dl.engine.disk_cache import DiskCache  # noqa: E402
from dl.wasm.encode import name_bytes, section  # noqa: E402
from tests.support import named_functions as f  # noqa: E402
from tests.support.modules import returns, static  # noqa: E402
from tests.support.paths import FIXTURES  # noqa: E402
from tests.support.pools import SECONDS, SPEC, until  # noqa: E402

pytestmark = [
    pytest.mark.timeout(120),
    # Dask's own, of sockets that are still being closed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FUNCTIONS = "".join(f"(func (result i32) i32.const {n})" for n in range(1500))
BIG = dl.Spec(
    main=static(FUNCTIONS, returns("five", 5)),
    name="big",
    libraries={"libadd.so": FIXTURES / "plugins/unshared/libadd.so"},
)
"""A program whose code is large enough to be mapped, and small enough to be compiled soon."""

NUMBERS = itertools.count()


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[Client]:
    """The client of a scheduler with two worker processes, that are started again when they die."""
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.logging.distributed": "critical",
        # A worker that is not there again within 15 seconds would be given up for good.
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }
    with dask.config.set(settings):
        with LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=50,
            protocol="tcp",
        ) as cluster:
            with Client(cluster) as client:
                yield client


@pytest.fixture(name="client")
def _client(cluster: Client) -> Client:
    """The client of the cluster, once the workers are there again that another test has had killed."""
    cluster.wait_for_workers(2, timeout=SECONDS)
    return cluster


def held(_group: dl.InstanceGroup, _item: object = None) -> tuple[int, dict[str, int], int]:
    """What this worker holds: its process, the holders of each module, the number of programs."""
    from dl.cluster import worker

    modules = {digest: holders for digest, (_, holders) in worker._modules.items()}
    return os.getpid(), modules, len(worker._programs)


def new() -> dl.Spec:
    """The same program, of bytes that no worker has seen."""
    assert isinstance(BIG.main, bytes)
    return BIG.replace(main=BIG.main + section(0, name_bytes(f"unique {next(NUMBERS)}")))


def maps_code(group: dl.InstanceGroup, _item: object) -> bool:
    """Whether code is mapped that came from the client, in a program that works."""
    assert group.library("libadd.so").add(2, 3) == group.library(None).five()
    cache = group.linker.program.compiler._store
    return isinstance(cache, DiskCache) and str(cache.path) in Path("/proc/self/maps").read_text()


def holding(_dask_worker: Any = None) -> int:
    """How many modules and programs a worker holds."""
    from dl.cluster import worker

    return len(worker._modules) + len(worker._programs)


def files_of_code(dask_worker: Any) -> list[str]:
    """The directories of code that a worker keeps."""
    return [path.name for path in Path(dask_worker.local_directory).glob("wasix-dl-code-*")]


def on_each(client: Client, submit: Callable[[int, str], Any]) -> list[Any]:
    """The futures of what is submitted to each worker, by its number and address."""
    return [submit(number, worker) for number, worker in enumerate(client.run(os.getpid))]


def knows(key: str, dask_worker: Any = None) -> bool:
    """Whether a worker has a task."""
    return key in dask_worker.state.tasks


def plugins(dask_scheduler: Any) -> list[str]:
    """What the scheduler gives to each worker that comes."""
    return [name for name in dask_scheduler.worker_plugins if name.startswith("wasix-dl")]


class TestWork:
    def test_functions_run_with_the_program_of_the_worker(self, client: Client) -> None:
        """Results are in the order of the items; each worker builds the program once, and keeps it."""
        results = client.gather(dl.cluster.map(SPEC, f.counted, range(40), client=client))

        assert [item for item, _, _ in results] == list(range(40))
        counts: dict[int, list[int]] = {}
        for _, process, count in results:
            counts.setdefault(process, []).append(count)
        assert 1 <= len(counts) <= 2
        assert all(sorted(of_one) == list(range(1, len(of_one) + 1)) for of_one in counts.values())

    def test_several_lists_and_one_function(self, client: Client) -> None:
        """As `Client.map`, it takes several lists; `submit` runs one function, also a lambda."""
        with dl.cluster.Program(BIG, client) as program:
            futures = program.map(lambda group, a, b: group.library("libadd.so").add(a, b), [1, 2], [10, 20])
            assert client.gather(futures) == [11, 22]
            assert program.submit(lambda group: group.name).result(SECONDS)

    def test_a_client_is_found(self, client: Client) -> None:
        """Without a client, the present one is meant."""
        with client.as_current():
            assert dl.cluster.map(SPEC, f.call, ["seven"])[0].result(SECONDS) == 7


class TestSending:
    def test_modules_are_sent_once_by_their_content(self, client: Client) -> None:
        """A worker holds each module once, whoever needs it; a task has neither modules nor the description."""
        other = BIG.replace(args=["other"])
        with dl.cluster.Program(BIG, client) as one, dl.cluster.Program(other, client) as two:
            names = client.run_on_scheduler(plugins)
            assert len(set(names)) == len(names)
            assert one.digest != two.digest
            seen = client.gather(
                on_each(client, lambda _, worker: one.submit(held, workers=[worker]))
                + on_each(client, lambda _, worker: two.submit(held, workers=[worker]))
            )
            assert {process for process, _, _ in seen} == set(client.run(os.getpid).values())
            assert all(set(modules.values()) == {1} for _, modules, _ in seen)
            task = pickle.dumps(Run(one.digest, f.counted, None))
            assert len(task) < 300

    def test_compiled_code_comes_along(self, client: Client) -> None:
        """Workers on machines like this one use the code of the client, mapped; without it, they compile."""
        for sent in (True, False):
            with dl.cluster.Program(new(), client, send_code=sent) as program:
                assert set(client.gather(program.map(maps_code, range(6)))) == {sent}

    def test_code_for_another_machine_is_not_used(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker whose engine or machine is another compiles by itself."""
        compiled = own._compiled
        monkeypatch.setattr(own, "_compiled", lambda spec: ("of another machine", compiled(spec)[1]))
        with dl.cluster.Program(new(), client) as program:
            assert set(client.gather(program.map(maps_code, range(4)))) == {False}

    def test_what_is_forgotten_is_gone(self, client: Client) -> None:
        """When nobody needs them, workers hold neither module nor program; a task that comes late is told."""
        dl.cluster.forget(SPEC, client)
        program = dl.cluster.Program(new(), client)
        assert client.gather(program.map(maps_code, [0])) == [True]
        assert all(client.run(files_of_code).values())
        program.forget()
        program.forget()

        assert client.run_on_scheduler(plugins) == []
        assert set(client.run(holding).values()) == {0}
        assert not any(client.run(files_of_code).values())
        with pytest.raises(dl.LinkerUsageError, match="forgotten"):
            program.submit(f.number).result(SECONDS)
        assert dl.cluster.map(SPEC, f.call, ["seven"], client=client)[0].result(SECONDS) == 7

    def test_what_a_worker_cannot_hold_is_taken_back(self, client: Client) -> None:
        """When a worker refuses one part of a program, none of its parts stays: not there, nor for workers that come."""
        dl.cluster.forget(SPEC, client)
        module, program = HeldModule("0", b"module"), HeldProgram("1", b"no pickle")
        with pytest.raises(pickle.UnpicklingError):
            own._hold(client, [module, program])

        assert client.run_on_scheduler(plugins) == []
        assert set(client.run(holding).values()) == {0}
        own._hold(client, [module])
        own._let_go(client, [module])
        assert client.run_on_scheduler(plugins) == []


class TestErrors:
    def test_a_trap_arrives_with_its_frames(self, client: Client) -> None:
        """It is a `TrapError` with the guest's stack, wherever it was raised; the worker goes on."""
        [future] = dl.cluster.map(SPEC, f.call, ["trap"], client=client)
        with pytest.raises(dl.TrapError, match="unreachable") as caught:
            future.result(SECONDS)

        assert len(caught.value.frames) == 2
        assert dl.cluster.map(SPEC, f.call, ["seven"], client=client)[0].result(SECONDS) == 7

    def test_an_exception_that_cannot_be_pickled_is_told(self, client: Client) -> None:
        """It comes as a `RemoteError` that says what it was."""
        with dl.cluster.Program(SPEC, client) as program:
            with pytest.raises(dl.RemoteError, match="Held: locked"):
                program.submit(f.fail_unpicklably).result(SECONDS)

    def test_an_error_with_a_cause_that_cannot_be_pickled_arrives(self, client: Client) -> None:
        """The error is typed; what caused it is named."""

        def fail(group: dl.InstanceGroup) -> None:
            try:
                f.fail_unpicklably(group)
            except f.Held as error:
                raise dl.LinkError("lib.so", "why") from error

        with dl.cluster.Program(SPEC, client) as program:
            with pytest.raises(dl.LinkError, match="why") as caught:
                program.submit(fail).result(SECONDS)
        assert isinstance(caught.value.__cause__, dl.RemoteError)

    def test_a_program_that_cannot_be_linked_is_an_error_of_each_task(self, client: Client) -> None:
        """What a worker cannot build it says with the linker's own error."""
        spec = SPEC.replace(imports={"env": {"forty": "tests.support.named_functions:missing"}})
        with dl.cluster.Program(spec, client) as program:
            with pytest.raises(dl.SpecError, match="missing"):
                program.submit(f.number).result(SECONDS)

    def test_a_description_that_cannot_be_packed_is_an_error_here(
        self, client: Client, tmp_path: Path
    ) -> None:
        """A module that is not there is missed where the description is, and nothing is sent."""
        before = client.run_on_scheduler(plugins)
        with pytest.raises(dl.LinkError):
            dl.cluster.map(dl.Spec(main=tmp_path / "nothing.wasm"), f.number, [], client=client)
        assert client.run_on_scheduler(plugins) == before

    def test_guest_code_that_computes_for_ever_is_stopped(self, client: Client) -> None:
        """With a bound the task ends by an error, and its worker takes the next one."""
        for future in dl.cluster.map(SPEC, f.call, ["spin", "spin"], client=client, timeout=0.2):
            with pytest.raises(dl.GuestTimeoutError):
                future.result(SECONDS)
        for future in dl.cluster.map(SPEC, f.call, ["seven", "seven"], client=client):
            assert future.result(SECONDS) == 7


class TestCancelling:
    def test_what_waits_is_not_run(self, client: Client, tmp_path: Path) -> None:
        """A task that is cancelled before a worker has begun with it is never run."""
        gates, touched = [tmp_path / "one", tmp_path / "two"], tmp_path / "touched"
        with dl.cluster.Program(SPEC, client) as program:
            running = on_each(
                client,
                lambda number, worker: program.submit(
                    f.wait_for, str(gates[number]), "ab"[number], workers=[worker]
                ),
            )
            for gate in gates:
                until(gate.with_suffix(".runs"))
            waiting = program.submit(f.wait_for, str(touched))
            waiting.cancel()
            end = time.monotonic() + SECONDS
            while any(client.run(knows, waiting.key).values()):  # the order is still on its way
                assert time.monotonic() < end
            for gate in gates:
                gate.touch()
            assert client.gather(running) == ["a", "b"]
            assert program.submit(f.call, "seven").result(SECONDS) == 7
        assert waiting.cancelled()
        assert not Path(f"{touched}.runs").exists()


class TestDeaths:
    def test_a_worker_that_dies_is_no_loss(self, client: Client, tmp_path: Path) -> None:
        """What a killed worker had is done by others, and the one in its place has the program before its first task."""
        with dl.cluster.Program(new(), client) as program:
            marker = tmp_path / "go"
            futures = on_each(client, lambda number, _: program.submit(f.wait_for, str(marker), "ab"[number]))
            futures += program.map(maps_code, range(20))
            until(Path(f"{marker}.runs"))
            processes = set(client.run(os.getpid).values())
            os.kill(min(processes), signal.SIGKILL)
            marker.touch()

            assert client.gather(futures) == ["a", "b", *[True] * 20]
            end = time.monotonic() + SECONDS
            while len(client.run(os.getpid)) < 2:
                assert time.monotonic() < end
                time.sleep(0.05)
            after = set(client.run(os.getpid).values())
            assert len(after & processes) == 1
            seen = client.gather(on_each(client, lambda _, worker: program.submit(held, workers=[worker])))
            assert {process for process, _, _ in seen} == after

    def test_a_task_that_kills_its_workers_ends_as_dask_has_it(self, client: Client) -> None:
        """After as many deaths as the scheduler allows, the task fails by `KilledWorker`, and others go on."""
        with dl.cluster.Program(SPEC, client) as program:
            killing = program.submit(f.die, 3)
            wait([killing], timeout=SECONDS)
            assert isinstance(killing.exception(), KilledWorker)
            assert program.submit(f.call, "seven").result(SECONDS) == 7


def test_threads_of_a_worker_have_programs_of_their_own() -> None:
    """A worker with several threads builds the program for each; workers in one process share the modules."""
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0", silence_logs=50
    ) as cluster:
        with Client(cluster) as client, dl.cluster.Program(SPEC, client) as program:
            results = client.gather(program.map(f.counted, range(60)))
            assert [item for item, _, _ in results] == list(range(60))
            assert holding() > 0
    assert holding() == 0
