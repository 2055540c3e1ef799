"""What compiled loops say to the memory and numba has no words for: an address as a pointer, a line asked for early."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTES = ir.IntType(8).as_pointer()


@intrinsic
def pointer(_context: Any, address: Any) -> Any:
    """Return the pointer to an address, for `carray`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], _BYTES)

    return types.voidptr(address), generate


@intrinsic
def ask_for_line(_context: Any, _address: Any) -> Any:
    """Ask for the cache line at an address without waiting for it."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _ask(builder, builder.inttoptr(arguments[0], _BYTES))
        return context.get_dummy_value()

    return types.void(types.uintp), generate


@intrinsic
def ask_for_item(_context: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """Ask for the cache line of array[index] without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        _ask(builder, builder.bitcast(builder.gep(data, [arguments[1]]), _BYTES))
        return context.get_dummy_value()

    return types.void(array, index), generate


def _ask(builder: Any, address: Any) -> None:
    number = ir.IntType(32)
    shape = ir.FunctionType(ir.VoidType(), [_BYTES, number, number, number])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [_BYTES], shape)
    builder.call(prefetch, [address, number(0), number(3), number(1)])  # read, keep, data
