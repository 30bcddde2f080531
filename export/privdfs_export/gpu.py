"""The little of CUDA's driver that running a plan takes: what GPU there is, memory on it, copies, a stream.

It calls libcuda.so.1 itself, whose interface is stable and which every NVIDIA driver brings, so that a serving
container needs no further Python package. **It has never run on a GPU**: the tests run it against a stub of the
library.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs_export.errors import EngineError, TensorRTMissingError

LIBRARY = "libcuda.so.1"
#: CUdevice_attribute of cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: as CUDA counts.
        name: of the model, such as "NVIDIA H100 80GB HBM3".
        compute_capability: such as "9.0".
    """

    index: int
    name: str
    compute_capability: str


def find_gpu(index: int = 0) -> Gpu:
    """Ask the driver about a GPU.

    Args:
        index: Which, as CUDA counts.

    Returns:
        What it is.

    Raises:
        TensorRTMissingError: The driver or the GPU is missing.
    """
    cuda = _driver()
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or index >= count.value:
        message = (
            f"there is no GPU {index} here ({count.value} found): an engine is built and run on the GPU that will "
            "serve. In a container, pass `--gpus all`."
        )
        raise TensorRTMissingError(message)
    device = _device(cuda, index)
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    numbers = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        number = ctypes.c_int()
        _check(cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device), "cuDeviceGetAttribute")
        numbers.append(number.value)
    return Gpu(index, name.value.decode(errors="replace"), "{}.{}".format(*numbers))


class Memory:
    """Memory and one stream of a GPU, inside `using`."""

    def __init__(self, cuda: Any, stream: ctypes.c_void_p) -> None:
        """Take the driver and the stream that `using` made."""
        self._cuda, self._stream = cuda, stream
        self._held: list[ctypes.c_uint64] = []

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.value or 0

    def put(self, array: NDArray[np.generic]) -> int:
        """Copy an array to the GPU.

        Args:
            array: Contiguous or not.

        Returns:
            Its address there.
        """
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes)
        copy = self._cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), array.nbytes)
        _check(copy, "cuMemcpyHtoD")
        return address

    def allocate(self, size: int) -> int:
        """Memory on the GPU.

        Args:
            size: Bytes.

        Returns:
            Its address.
        """
        address = ctypes.c_uint64()
        _check(self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), "cuMemAlloc")
        self._held.append(address)
        return address.value

    def get(self, address: int, into: NDArray[np.generic]) -> None:
        """Wait for the stream, and copy from the GPU.

        Args:
            address: Of `allocate`.
            into: Contiguous array that is filled.
        """
        _check(self._cuda.cuStreamSynchronize(self._stream), "cuStreamSynchronize")
        copy = self._cuda.cuMemcpyDtoH_v2(ctypes.c_void_p(into.ctypes.data), ctypes.c_uint64(address), into.nbytes)
        _check(copy, "cuMemcpyDtoH")

    def free(self) -> None:
        """Give all memory back."""
        for address in self._held:
            self._cuda.cuMemFree_v2(address)
        self._held.clear()


@contextmanager
def using(gpu: Gpu) -> Iterator[Memory]:
    """Make a GPU the current one of this thread, also for TensorRT, which takes the primary context.

    Args:
        gpu: Which.

    Yields:
        Its memory, with a stream; both are gone afterwards.
    """
    cuda = _driver()
    _check(cuda.cuInit(0), "cuInit")
    device = _device(cuda, gpu.index)
    context, stream = ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    try:
        _check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        _check(cuda.cuStreamCreate(ctypes.byref(stream), 0), "cuStreamCreate")
        memory = Memory(cuda, stream)
        try:
            yield memory
        finally:
            memory.free()
            cuda.cuStreamDestroy_v2(stream)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def _driver() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        message = (
            "no NVIDIA driver here (libcuda.so.1 cannot be loaded), so no engine can be built or run. Run "
            "this on the GPU host, in a container with `--gpus all`."
        )
        raise TensorRTMissingError(message) from error


def _device(cuda: Any, index: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _check(cuda.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    return device


def _check(status: int, call: str) -> None:
    if status:
        message = (
            f"{call} of the NVIDIA driver failed with CUDA error {status}: look with nvidia-smi what the GPU does."
        )
        raise EngineError(message)
