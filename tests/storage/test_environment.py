"""The LMDB environment: cut off files, failed commits, forks while threads are inside."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
import time

import lmdb
import numpy as np
import pytest

from diskreplay import CorruptStoreError, FormatVersionError, ReadOnlyError, ReplayError, ReplayStore
from diskreplay.storage import environment, layout, sharing
from diskreplay.storage.gate import Gate
from diskreplay.storage.index import Index
from diskreplay.storage.watermark import NAME, Watermark, read_watermark, write_watermark
from tests.conftest import fill


def in_child(work, patience=20.0):
    """Run `work` in a forked child; return its exit status: 0, 1 for an exception, -n for signal n, None: it hung."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as err:  # noqa: BLE001  whatever it is, it must not run on in the child
            print(repr(err), flush=True)  # noqa: T201
        finally:
            os._exit(status)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.fixture
def closed(make_store):
    """Return the path of a closed store."""
    store = make_store(segment_steps=16)
    for seed in range(20):
        fill(store, episodes=2, length=9, seed=seed)
        store.commit()
    store.close()
    return store.path


@pytest.mark.parametrize("noted", [True, False])
def test_an_index_that_is_cut_off_is_an_error_and_no_signal(closed, tmp_path, noted):
    """Past the end of the file a memory map is SIGBUS. Without its noted length some cuts show only later."""
    data = closed / layout.INDEX / "data.mdb"
    whole = data.read_bytes()
    assert 0 < read_watermark(data.parent).length <= len(whole)
    outcomes = []

    def look():
        try:
            with ReplayStore.open(copy, mode="a") as store:
                store.read(store.step_ids_of(np.arange(len(store))))
                store.writer("b").close()
                fill(store, stream="b")
                store.commit()
        except ReplayError:
            return
        if noted:
            raise AssertionError("opened")

    for i, size in enumerate(range(0, len(whole), 3000)):
        copy = tmp_path / f"copy-{i}.replay"
        shutil.copytree(closed, copy)
        os.truncate(copy / layout.INDEX / "data.mdb", size)
        if not noted:
            (copy / layout.INDEX / NAME).unlink()
        outcomes.append(in_child(look))
        shutil.rmtree(copy)
    assert set(outcomes) <= ({0} if noted else {0, -signal.SIGABRT}), outcomes
    assert outcomes.count(0) > 0.9 * len(outcomes)


def test_a_reader_who_may_not_write_is_safe_too(closed, monkeypatch):
    """It cannot make the file longer, so a process of its own looks first whether all of it is there."""
    data = closed / layout.INDEX / "data.mdb"
    whole = data.stat().st_size
    (closed / layout.INDEX / NAME).unlink()
    monkeypatch.setattr(environment.os, "access", lambda path, _: path.name == "lock.mdb")
    assert in_child(lambda: ReplayStore.open(closed).close()) == 0
    os.truncate(data, whole // 2)

    def refused():
        with pytest.raises(CorruptStoreError, match="cut off"):
            ReplayStore.open(closed)

    assert in_child(refused) == 0


def test_a_reader_who_may_not_note_what_it_looks_at_is_told_what_to_allow(closed, monkeypatch):
    """Writers would use pages again that it reads."""
    monkeypatch.setattr(environment.os, "access", lambda *_: False)
    with pytest.raises(ReadOnlyError, match=r"lock\.mdb: no permission") as caught:
        ReplayStore.open(closed)
    assert "chmod" in caught.value.hint


def test_an_index_that_finds_no_addresses_says_so(closed):
    def refused():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
        with pytest.raises(ReplayError, match="addresses") as caught:
            ReplayStore.open(closed)
        assert "ulimit -v" in caught.value.hint

    assert in_child(refused) == 0


def test_the_note(tmp_path):
    """A damaged one is none."""
    assert read_watermark(tmp_path) == Watermark(0, 0)
    write_watermark(tmp_path, Watermark(4096, 7))
    assert read_watermark(tmp_path) == Watermark(4096, 7)
    note = tmp_path / NAME
    note.write_bytes(b"\xff" + note.read_bytes()[1:])
    assert read_watermark(tmp_path) == Watermark(0, 0)
    write_watermark(tmp_path / "nowhere", Watermark(4096, 7))


def test_a_damaged_newest_meta_page_is_no_silent_step_back(closed):
    """LMDB would take the older one, and with it the state before the last commit."""
    data = closed / layout.INDEX / "data.mdb"
    pages = bytearray(data.read_bytes())
    numbers = [int.from_bytes(pages[4096 * i + 144 : 4096 * i + 152], "little") for i in (0, 1)]
    newest = numbers.index(max(numbers))
    assert max(numbers) == read_watermark(data.parent).transaction
    pages[4096 * newest + 144 : 4096 * newest + 152] = bytes(8)
    data.write_bytes(pages)

    def refused():
        with pytest.raises(CorruptStoreError, match="not the newest"):
            ReplayStore.open(closed)
        index = Index(closed / layout.INDEX, checked=False)
        with index.read() as txn:
            assert txn.counters()["commits"] > 0
        index.close()

    assert in_child(refused) == 0


def test_after_a_failed_commit_the_environment_is_opened_anew(closed, monkeypatch):
    """What failed did not happen, and the next commit works; other handles of the process go on as well."""
    with ReplayStore.open(closed, mode="a") as store, ReplayStore.open(closed) as reader:
        before = len(store)
        fill(store, stream="b")
        shared = store._index._environment
        first = shared._lmdb

        class Failing:
            """A transaction whose commit fails at the meta page."""

            def __init__(self, txn):
                self.txn = txn

            def __getattr__(self, name):
                return getattr(self.txn, name)

            def commit(self):
                self.txn.abort()
                raise lmdb.Error("mdb_txn_commit: Input/output error")

        def fail(self, txn):
            txn.lmdb = Failing(txn.lmdb)
            real(self, txn)

        real = environment.Environment._commit
        with monkeypatch.context() as patch:
            patch.setattr(environment.Environment, "_commit", fail)
            with pytest.raises(ReplayError, match="Input/output error"):
                store.commit()
        store.commit()
        assert shared._lmdb is not first
        assert reader.refresh()
        assert len(reader) == len(store) == before + 50
        assert store.verify() == []


def test_a_commit_that_failed_but_counts_can_be_repeated(make_store, monkeypatch):
    """Then nothing is there twice: not in the catalogue, not in the counts."""
    store = make_store(segment_steps=8, capacity=400)
    fill(store, episodes=4, length=9)
    real = environment.Environment._commit

    def commit_and_fail(self, txn):
        real(self, txn)
        raise ReplayError("the end of the transaction is unclear")

    with monkeypatch.context() as patch:
        patch.setattr(environment.Environment, "_commit", commit_and_fail)
        with pytest.raises(ReplayError, match="unclear"):
            store.commit()
    fill(store, episodes=1, length=9, stream="b")
    store.commit()
    store.commit()
    assert store.verify() == []
    with store._index.read() as txn:
        assert int(txn.counters()["transitions"]) == len(store) == 45


def somebody_inside(gate):
    """Return a thread that is inside, and the event upon which it goes deeper, and then out."""
    inside, out = threading.Event(), threading.Event()

    def visit():
        with gate.visit():
            inside.set()
            out.wait(10)
            with gate.visit():
                pass

    thread = threading.Thread(target=visit)
    thread.start()
    inside.wait(10)
    return thread, out


def test_the_gate_closes_once_all_are_out():
    """Deeper entries of those inside pass; who is inside cannot close it; who is too slow is not waited for."""
    gate = Gate()
    thread, out = somebody_inside(gate)
    assert not gate.close(0.05)
    with gate.visit():
        assert not gate.close(1)
    threading.Timer(0.05, out.set).start()
    assert gate.close(10)
    late = threading.Thread(target=lambda: gate.visit().__enter__())
    late.start()
    late.join(0.05)
    assert late.is_alive()
    gate.open()
    late.join(10)
    thread.join(10)
    assert not late.is_alive()


def test_an_interrupt_while_a_gate_closes_leaves_it_open():
    """Else all other threads would wait for good."""
    gate = Gate()
    thread, out = somebody_inside(gate)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            gate.close(10)
    finally:
        signal.signal(signal.SIGALRM, before)
    out.set()
    thread.join(10)
    late = threading.Thread(target=lambda: gate.visit().__enter__(), daemon=True)
    late.start()
    late.join(10)
    assert not late.is_alive()


def test_a_forked_child_opens_the_store_itself(make_store):
    """Whatever threads of the parent do meanwhile; the inherited handle is refused, and closing it is harmless."""
    store = make_store(segment_steps=16)
    fill(store)
    store.commit()
    stop = threading.Event()

    def busy(number):
        while not stop.is_set():
            if number:
                store.refresh()
                store.read([0, 1, 2])
            else:
                fill(store, stream="busy", episodes=1)
                store.commit()

    threads = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()

    def child():
        with pytest.raises(ReplayError, match="before a fork"):
            store.commit()
        with pytest.raises(ReplayError, match="before a fork"):
            store.read([0])
        store.close()
        with ReplayStore.open(store.path) as mine:
            assert mine.read([0, 1, 2]).step_ids.tolist() == [0, 1, 2]
        with ReplayStore.open(store.path, mode="a") as mine:
            fill(mine, stream=f"child-{os.getpid()}", episodes=1)
            mine.commit()

    try:
        assert [in_child(child) for _ in range(20)] == [0] * 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    store.refresh()
    assert sum(name.startswith("child-") for name in store.streams) == 20


def test_a_fork_that_cannot_wait_leaves_a_child_that_says_why(closed, monkeypatch):
    """Here the forking thread is itself inside a transaction."""
    monkeypatch.setattr(sharing, "PATIENCE_S", 0.1)
    index = Index(closed / layout.INDEX)

    def child():
        with pytest.raises(ReplayError, match="was using the index") as caught:
            ReplayStore.open(closed)
        assert "spawn" in caught.value.hint

    with index.read() as txn:
        assert in_child(child) == 0
        assert txn.counters()["commits"] > 0
    index.close()
    ReplayStore.open(closed).close()


def edit(data, offset, content):
    """Overwrite bytes of both meta pages."""
    with data.open("r+b") as file:
        for page in (0, 4096):
            file.seek(page + offset)
            file.write(content)


def test_an_index_that_claims_far_more_than_it_has_is_not_made_that_long(closed):
    """A damaged last page number would have its file be 256 GiB long."""
    data = closed / layout.INDEX / "data.mdb"
    length = data.stat().st_size
    edit(data, 16 + 120, (1 << 26).to_bytes(8, "little"))

    def work():
        with pytest.raises(CorruptStoreError, match="claims"):
            ReplayStore.open(closed, mode="a")

    assert in_child(work) == 0
    assert data.stat().st_size == length


@pytest.mark.parametrize("pages", [(0,), (4096,), (0, 4096)])
@pytest.mark.parametrize("offset", [16, 20])
def test_garbage_is_no_other_version_of_lmdb(closed, pages, offset):
    """Of a page that is damaged nobody says that another release wrote it."""
    data = closed / layout.INDEX / "data.mdb"
    with data.open("r+b") as file:
        for page in pages:
            file.seek(page + offset)
            file.write(bytes([page // 4096 + 77, 3, 9]))
    with pytest.raises(CorruptStoreError, match="first pages"):
        ReplayStore.open(closed)


def test_another_version_of_lmdb_is_told(closed):
    shutil.rmtree(closed / layout.INDEX)
    lmdb.open(str(closed / layout.INDEX), lib_version=1, max_dbs=32).close()
    with pytest.raises(FormatVersionError, match="LMDB"):
        ReplayStore.open(closed)
