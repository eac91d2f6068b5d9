"""Kernels in another process: those for another processor under an emulator, or those with sanitizers.

`Remote.function` stands for `levels.function`. What it returns is called as the ctypes function is; the memory behind
the pointers, which are those of tensors, goes to `driver.cpp`, and back when the function has run.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Place = tuple[int, int]  # number of the block, bytes from its start


class Remote:
    """A process that runs kernels.

    Args:
        command: that starts `driver.cpp` with its library.
        level: whose functions are called.
    """

    def __init__(self, command: Sequence[str], level: str) -> None:
        self.level = level
        self.called: set[str] = set()  # names of functions
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._storages: dict[int, torch.UntypedStorage] = {}

    def close(self) -> None:
        """Raises RuntimeError where the process, or a sanitizer in it, has something to complain of."""
        _, complaints = self._process.communicate(timeout=60)
        if self._process.returncode or complaints:
            raise RuntimeError(f"{self.level}: {complaints.decode(errors='replace')} ({self._process.returncode})")

    def recorder(self) -> Callable[[Tensor], int]:
        """What stands for `Tensor.data_ptr` from now on, so that pointers can be followed."""
        own = torch._C.TensorBase.data_ptr
        self._storages.clear()

        def data_ptr(tensor: Tensor) -> int:
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage  # kept, or its memory may become another tensor's
            return own(tensor)

        return data_ptr

    def function(self, name: str, result: type | None = None) -> Callable[..., int]:
        """The function `name` of the level, which returns nothing or an integer of type `result`."""

        def call(*arguments: Any) -> int:
            self.called.add(name)
            return self.call(f"bigltl_{self.level}_{name}", result or ctypes.c_int, arguments)

        return call

    def call(self, name: str, result: type, arguments: Sequence[Any] = ()) -> int:
        request = _Request(self._storages, name)
        request.arguments = [request.argument(argument) for argument in arguments]
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.write(request.to_bytes())
            process.stdin.flush()
        except BrokenPipeError:
            pass
        sizes = [len(block) for block in request.blocks]
        answer = process.stdout.read(8 + sum(sizes))
        if len(answer) < 8 + sum(sizes):
            raise RuntimeError(f"{name} of {self.level} failed: {process.stderr.read().decode(errors='replace')}")
        start = 8
        for size, address in zip(sizes, request.addresses, strict=True):
            if address:
                ctypes.memmove(address, answer[start : start + size], size)
            start += size
        return result.from_buffer_copy(answer[:8]).value


class _Request:
    """What goes to the driver; its comment says how."""

    def __init__(self, storages: dict[int, torch.UntypedStorage], name: str) -> None:
        self._storages = storages
        self._numbers: dict[int, int] = {}  # block of the storage at an address
        self.blocks = [name.encode()]
        self.addresses = [0]  # where each comes from, 0 for what does not go back
        self.pointers: list[tuple[int, int, int, int]] = []
        self.arguments: list[Place] = []

    def argument(self, value: Any) -> Place:
        """A number, a pointer or a structure by reference."""
        if isinstance(value, ctypes.c_void_p):
            return (-1, 0) if value.value is None else self._target(value.value)
        if hasattr(value, "_obj"):  # byref()
            return self._structure(value._obj), 0
        return -1, value.value if isinstance(value, ctypes._SimpleCData) else value

    def to_bytes(self) -> bytes:
        sizes = [len(block) for block in self.blocks]
        header = [len(sizes), *sizes, len(self.pointers), *chain(*self.pointers), len(self.arguments)]
        header += chain(*self.arguments)
        return struct.pack(f"<{len(header)}q", *header) + b"".join(self.blocks)

    def _block(self, content: bytes, address: int = 0) -> int:
        self.blocks.append(content)
        self.addresses.append(address)
        return len(self.blocks) - 1

    def _structure(self, value: ctypes.Structure) -> int:
        block = self._block(bytes(value))
        for place, pointer in _pointers(value):
            self.pointers.append((block, place, *self._target(pointer)))
        return block

    def _target(self, pointer: int) -> Place:
        for start, storage in self._storages.items():
            if start <= pointer < start + storage.nbytes():
                if start not in self._numbers:
                    self._numbers[start] = self._block(ctypes.string_at(start, storage.nbytes()), start)
                return self._numbers[start], pointer - start
        raise ValueError("a pointer to memory that is no tensor's")


def _pointers(value: ctypes.Structure, start: int = 0) -> Iterator[tuple[int, int]]:
    """The pointers in a structure that are not null, and where they lie in it."""
    for name, kind, *_ in value._fields_:
        place = start + getattr(type(value), name).offset
        content = getattr(value, name)
        if issubclass(kind, ctypes.Structure):
            yield from _pointers(content, place)
        elif issubclass(kind, ctypes.Array) and issubclass(kind._type_, ctypes.Structure):
            for index, part in enumerate(content):
                yield from _pointers(part, place + index * ctypes.sizeof(part))
        elif kind is ctypes.c_void_p and content is not None:
            yield place, content
