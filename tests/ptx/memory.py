"""The memories that a kernel sees, all checked: global buffers of the host, shared, local and parameters."""

import numpy as np

SHARED, LOCAL, PARAMETER = (window << 56 for window in (1, 2, 3))
"""Where the other spaces begin among generic addresses; global memory has the host's own addresses."""

UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


class AccessError(IndexError):
    """An access outside every buffer, or not aligned."""


class GlobalMemory:
    """Buffers on the host that a kernel may touch."""

    def __init__(self) -> None:
        self._buffers: list[tuple[int, np.ndarray]] = []  # address, bytes
        self._starts = np.zeros(0, np.int64)

    def add(self, array: np.ndarray) -> int:
        """Let the kernel use a contiguous array, in place. Returns its address."""
        data = array.reshape(-1).view(np.uint8)
        address = array.__array_interface__["data"][0]
        if not any(start <= address and address + data.size <= start + b.size for start, b in self._buffers):
            self._buffers.append((address, data))
            self._buffers.sort(key=lambda pair: pair[0])
            self._starts = np.array([start for start, _ in self._buffers], np.int64)
        return address

    def add_address(self, address: int, size: int) -> int:
        """The same for ``size`` bytes at an address, which must stay alive."""
        if size == 0:
            return address
        import ctypes

        return self.add(np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8))

    def pieces(self, addresses: np.ndarray, size: int, text: str):
        """For each buffer that is touched: which addresses, the buffer in elements of ``size``, and their indices."""
        if len(addresses) == 0:
            return
        which = np.searchsorted(self._starts, addresses, "right") - 1
        first = which[0]
        groups = [(first, slice(None))] if (which == first).all() else [(i, which == i) for i in np.unique(which)]
        for i, selected in groups:
            at = addresses[selected]
            if i < 0:
                raise AccessError(f"global access at {at[0]:#x}, before every buffer: {text}")
            start, data = self._buffers[i]
            offset = at - start
            if (offset + size > data.size).any():
                raise AccessError(f"global access at byte {offset.max()} of a buffer of {data.size}: {text}")
            if (at % size).any():
                raise AccessError(f"misaligned global access: {text}")
            if start % size:
                raise AccessError(f"a buffer is aligned to less than {size} bytes: {text}")
            yield selected, data[: data.size // size * size].view(UNSIGNED[size]), offset // size


class PrivateMemory:
    """``owners`` equal pieces of memory, each seen by one block (shared), one thread (local) or all (parameters)."""

    def __init__(self, name: str, owners: int, size: int) -> None:
        self.name, self.size = name, size
        self.pitch = -(-max(size, 1) // 16) * 16
        self.data = np.full(owners * self.pitch, 0xFF, np.uint8)  # NaN in every floating type

    def locate(self, owner: np.ndarray | int, offset: np.ndarray, size: int, text: str):
        """The memory in elements of ``size``, and the indices of each owner's ``offset``."""
        if (offset < 0).any() or (offset + size > self.size).any():
            raise AccessError(f"{self.name} access at byte {offset.max()} of {self.size}: {text}")
        if (offset % size).any():
            raise AccessError(f"misaligned {self.name} access: {text}")
        return self.data.view(UNSIGNED[size]), (owner * self.pitch + offset) // size
