"""Copying past the caches, compiled.

A large batch is written once, and read by the learner after others have pushed it out of the caches: to write it
there costs a read of every line first. Stores that go past them leave that out: 35 kB, a window of five frames, take
1.6 us instead of 3.9, and whoever reads them afterwards notices nothing (3.0 us either way).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from diskreplay.addresses import ask_for_line
from diskreplay.storage import native

LINE = 64
ASKED_BYTES = 1024
PAST_BYTES = 2 << 20  # what is smaller stays in a core's second cache until it is read


@intrinsic
def _stream_lines(_context: Any, _target: Any, _source: Any, _lines: Any) -> Any:
    """Copy so many lines, at least one, to an address that is a multiple of 64."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, start, count = arguments
        word, vector = ir.IntType(64), ir.VectorType(ir.IntType(64), LINE // 8)  # as wide as the processor can
        mark = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        entry = builder.block
        loop, done = builder.append_basic_block("lines"), builder.append_basic_block("done")
        end = builder.mul(count, ir.Constant(word, LINE))
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(word)
        at.add_incoming(ir.Constant(word, 0), entry)
        line = builder.load(builder.inttoptr(builder.add(start, at), vector.as_pointer()), align=1)
        store = builder.store(line, builder.inttoptr(builder.add(to, at), vector.as_pointer()), align=LINE)
        store.set_metadata("nontemporal", mark)
        following = builder.add(at, ir.Constant(word, LINE))
        at.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, end), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), codegen


@njit(nogil=True, inline="always")
def ask_for(address, size):
    """Ask for the first bytes of what will be read soon; once some lines were read the processor asks by itself."""
    for line in range(np.uint64(0), min(size, np.uint64(ASKED_BYTES)), np.uint64(LINE)):
        ask_for_line(address + line)


@intrinsic
def fence(_context: Any) -> Any:
    """Have everything that was streamed be where other threads see it, before anything that follows."""

    def codegen(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True)
def stream(target, source, size):
    """Copy `size` bytes past the caches; `fence` before anybody is told of them."""
    head = min((np.uint64(LINE) - target % np.uint64(LINE)) % np.uint64(LINE), size)
    lines = (size - head) // np.uint64(LINE)
    if head:
        native.memcpy(target, source, head)
    if lines:
        _stream_lines(target + head, source + head, lines)
    done = head + lines * np.uint64(LINE)
    if done < size:
        native.memcpy(target + done, source + done, size - done)
