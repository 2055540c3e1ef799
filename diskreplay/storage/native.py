"""C entry points for the compiled paths, found in libraries that are installed anyway.

numcodecs' extension modules export zstd and blosc, google-crc32c exports crc32c, libc the rest. They are
registered under names of our own, so that numba can link compiled code against them and still cache it.
Where one is missing (another platform, a purer build), `AVAILABLE` is False and the plain Python path serves the
same bytes. `DISKREPLAY_PURE_PYTHON=1` forces that path.
"""

from __future__ import annotations

import ctypes
import os
from importlib import import_module
from typing import Any, Literal

import llvmlite.binding as llvm
from numba import types
from numba.core.compiler_lock import global_compiler_lock

_SYMBOLS = {
    "pread": (None, "pread64"),
    "posix_fadvise": (None, "posix_fadvise64"),
    "memcpy": (None, "memcpy"),
    "memset": (None, "memset"),
    "crc32c_extend": ("google_crc32c._crc32c", "crc32c_extend"),
    "zstd_decompress": ("numcodecs.zstd", "ZSTD_decompressDCtx"),
    "zstd_create_decoder": ("numcodecs.zstd", "ZSTD_createDCtx"),
    "zstd_free_decoder": ("numcodecs.zstd", "ZSTD_freeDCtx"),
    "zstd_compress": ("numcodecs.zstd", "ZSTD_compressCCtx"),
    "zstd_create_encoder": ("numcodecs.zstd", "ZSTD_createCCtx"),
    "zstd_free_encoder": ("numcodecs.zstd", "ZSTD_freeCCtx"),
    "blosc_compress": ("numcodecs.blosc", "blosc_compress_ctx"),
    "blosc_decompress": ("numcodecs.blosc", "blosc_decompress_ctx"),
    "lz4_decompress": ("numcodecs.lz4", "LZ4_decompress_safe_partial"),
}
_addresses: dict[str, int] = {}


def _register() -> bool:
    if os.environ.get("DISKREPLAY_PURE_PYTHON"):
        return False
    try:
        for name, (module, symbol) in _SYMBOLS.items():
            path = import_module(module).__file__ if module else None
            library = ctypes.CDLL(path)
            address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
            if address is None:
                return False
            _addresses[name] = address
            llvm.add_symbol(f"diskreplay_{name}", address)
    except (ImportError, OSError, AttributeError):
        return False
    return True


AVAILABLE = _register()

# A child forked while a thread compiles would wait for ever for numba's lock, at its own first compiled call.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)


def _external(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(f"diskreplay_{name}", result(*arguments))


pread = _external("pread", types.int64, types.int32, types.uintp, types.uintp, types.int64)
posix_fadvise = _external("posix_fadvise", types.int32, types.int32, types.int64, types.int64, types.int32)
memcpy = _external("memcpy", types.uintp, types.uintp, types.uintp, types.uintp)
memset = _external("memset", types.uintp, types.uintp, types.int32, types.uintp)
crc32c_extend = _external("crc32c_extend", types.uint32, types.uint32, types.uintp, types.uintp)
zstd_decompress = _external(
    "zstd_decompress",
    types.uintp, types.uintp, types.uintp, types.uintp, types.uintp, types.uintp,
)  # fmt: skip
zstd_compress = _external(
    "zstd_compress",
    types.uintp, types.uintp, types.uintp, types.uintp, types.uintp, types.uintp, types.int32,
)  # fmt: skip
blosc_compress = _external(
    "blosc_compress",
    types.int32, types.int32, types.int32, types.uintp, types.uintp, types.uintp,
    types.uintp, types.uintp, types.uintp, types.uintp, types.int32,
)  # fmt: skip
blosc_decompress = _external(
    "blosc_decompress",
    types.int32,
    types.uintp,
    types.uintp,
    types.uintp,
    types.int32,
)
lz4_decompress = _external(
    "lz4_decompress",
    types.int32,
    types.uintp,
    types.uintp,
    types.int32,
    types.int32,
    types.int32,
)


class ZstdContext:
    """Own a context of zstd; making one costs most of a small chunk's decoding."""

    def __init__(self, kind: Literal["decoder", "encoder"] = "decoder") -> None:
        create = ctypes.CFUNCTYPE(ctypes.c_void_p)(_addresses[f"zstd_create_{kind}"])
        self._free = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(_addresses[f"zstd_free_{kind}"])
        self.address = int(create() or 0)
        if not self.address:
            raise MemoryError(f"zstd: no memory for a context of the {kind}")

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self._free(self.address)
            self.address = 0
