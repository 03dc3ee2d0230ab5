"""The prover: one file, standard library and torch, shipped to the machine and run there by ``bootstrap``.

It reads frames from stdin and answers on stdout; see ``frames`` for their form and ``session`` for their order. One
thread per device; the main thread only reads, so that a validator who hangs up frees the devices at once. What it
says proves nothing by itself: the validator checks the arithmetic and its own clock.

The CPU path runs in this project's tests. The CUDA path is the same code on another device, with fp16 entries, a
product accumulated in fp32, and two kernels of its own where they can be compiled; it runs where there is a card.

Syntax and library use stay within Python 3.8 and torch 2.8 to 2.13.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

# One thread per device, also inside the libraries; OpenMP reads this when it is loaded, in every thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import torch

M1 = 0x7FEB352D
M2 = 0x846CA68B - (1 << 32)
SPAN = 363
OFFSET = 181
BLOCK_ROWS = 1024

# ``plain_entries`` and ``plain_digests`` as one kernel each, for torch's elementwise compiler, which needs no more than
# the NVRTC that comes with torch. Without them temporaries cost many times the memory traffic of what is computed.
ENTRIES_KERNEL = """
template <typename T> void entries(T first, T second, T column, T& low, T& high) {
    unsigned int x = (unsigned int)first ^ (unsigned int)column;
    x *= 0x7FEB352Du;
    x ^= (unsigned int)second;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    low = (T)((x & 0xFFFFu) * 363u >> 16) - (T)181;
    high = (T)((x >> 16) * 363u >> 16) - (T)181;
}
"""
# A quarter of a row from each of four places, two words in each: one addend of the digest for 64 bytes read.
DIGEST_KERNEL = """
template <typename T> T addend(T a, T b, T c, T d, T key_a, T key_b, T key_c, T key_d) {
    T words[4] = {a ^ key_a, b ^ key_b, c ^ key_c, d ^ key_d};
    T total = 0;
    for (int i = 0; i < 8; i++) {
        unsigned int w = (unsigned int)(words[i / 2] >> (i % 2 * 32));
        w *= 0x7FEB352Du;
        w ^= w >> 15;
        w *= 0x846CA68Bu;
        w ^= w >> 13;
        total += (T)(int)w;
    }
    return total;
}
"""


def make_seed(*parts: bytes) -> Sequence[int]:
    state = hashlib.sha256()
    for part in parts:
        state.update(struct.pack("<I", len(part)) + part)
    return struct.unpack("<8i", state.digest())


def shift_right(x: Any, bits: int) -> Any:
    """Logical, where int32 tensors shift arithmetically."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def make_keys(indices: Any, words: Sequence[int]) -> Any:
    x = indices.to(torch.int32)
    for word in words:
        x = x ^ word
        x ^= shift_right(x, 16)
        x *= M1
        x ^= shift_right(x, 15)
        x *= M2
        x ^= shift_right(x, 16)
    return x


def column_keys(columns: int, seed: Sequence[int], device: Any) -> Any:
    words = (seed[7], seed[2], seed[5], seed[0])
    return make_keys(torch.arange(columns // 2, device=device), words)


class Kernels(NamedTuple):
    """The inner loops: ``entries`` of first and second row keys and column keys, ``digests`` of int16 rows and keys."""

    entries: Callable[[Any, Any, Any], Any]
    digests: Callable[[Any, Any], Any]
    fused: bool


def plain_entries(first: Any, second: Any, column: Any) -> Any:
    """Two int32 entries for each row key in ``(rows, 1)`` and column key in ``(1, half)``: left and right half."""
    x = first ^ column
    x *= M1
    x ^= second
    x ^= shift_right(x, 15)
    x *= M2
    high = shift_right(x, 16)
    x ^= high
    x &= 0xFFFF
    for part in (x, high):
        part *= SPAN
        part >>= 16
        part -= OFFSET
    return x, high


def plain_digests(rows: Any, key_words: Any) -> Any:
    """Digests of int16 rows as int64."""
    w = rows.view(torch.int32) ^ key_words[None, :]
    w *= M1
    w ^= shift_right(w, 15)
    w *= M2
    w ^= shift_right(w, 13)
    return w.sum(1, dtype=torch.int64)


PLAIN = Kernels(plain_entries, plain_digests, fused=False)


def fused_kernels() -> Kernels:
    entries = torch.cuda.jiterator._create_multi_output_jit_fn(ENTRIES_KERNEL, num_outputs=2)
    addend = torch.cuda.jiterator._create_jit_fn(DIGEST_KERNEL)

    def digests(rows: Any, key_words: Any) -> Any:
        words = rows.view(torch.int64).chunk(4, 1)
        return addend(*words, *key_words.view(torch.int64)[None, :].chunk(4, 1)).sum(1)

    return Kernels(entries, digests, fused=True)


def choose_kernels(device: Any, columns: int, make: Callable[[], Kernels] = fused_kernels) -> Kernels:
    """The fused kernels where they are to be had and give the same bits as plain torch on this device."""
    if columns % 16:
        return PLAIN
    try:
        fused = make()
        keys = make_keys(torch.arange(8 * columns, device=device), (1, 2, 3, 4))
        rows, key_words = keys.view(torch.int16).view(-1, columns), keys[: columns // 2]
        first, second, column = keys[:64, None], keys[64:128, None], keys[None, : columns // 2]
        low, high = fused.entries(first, second, column)
        expected_low, expected_high = plain_entries(first, second, column)
        same = torch.equal(low, expected_low) and torch.equal(high, expected_high)
        same = same and torch.equal(fused.digests(rows, key_words), plain_digests(rows, key_words))
    except Exception:  # the compiler is a beta feature of torch: whatever it raises, the machine can do without it
        same = False
    return fused if same else PLAIN


def generate(indices: Any, seed: Sequence[int], column: Any, out: Any, step: int, kernels: Kernels = PLAIN) -> None:
    """Fill ``out``, ``(len(indices), 2 * len(column))``, with rows of the matrix of ``seed``, ``step`` at a time."""
    half = column.numel()
    first, second = make_keys(indices, seed[0:4]), make_keys(indices, seed[4:8])
    for top in range(0, indices.numel(), step):
        rows = slice(top, top + step)
        low, high = kernels.entries(first[rows, None], second[rows, None], column[None, :])
        out[rows, :half] = low
        out[rows, half:] = high


def row_digests(rows: Any, key_words: Any, step: int, kernels: Kernels = PLAIN) -> Any:
    """Digests of int16 rows as int64, ``step`` rows at a time."""
    out = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
    for top in range(0, rows.shape[0], step):
        out[top : top + step] = kernels.digests(rows[top : top + step], key_words)
    return out


def to_bytes(tensor: Any) -> bytes:
    """The bytes of a tensor, without numpy, which a machine may lack."""
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def tree_levels(data: bytes) -> list[list[bytes]]:
    """The levels of the SHA-256 tree over ``<i8`` digests, leaves first."""
    size = 8 * BLOCK_ROWS
    level = [hashlib.sha256(b"\x00" + data[top : top + size]).digest() for top in range(0, len(data), size)]
    levels = [level]
    while len(level) > 1:
        level = [
            hashlib.sha256(b"\x01" + level[i] + level[min(i + 1, len(level) - 1)]).digest()
            for i in range(0, len(level), 2)
        ]
        levels.append(level)
    return levels


def tree_path(levels: list[list[bytes]], index: int) -> bytes:
    siblings = []
    for level in levels[:-1]:
        siblings.append(level[min(index ^ 1, len(level) - 1)])
        index >>= 1
    return b"".join(siblings)


class Output:
    """Frames to the validator, whole, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, header: dict[str, object], payload: bytes = b"") -> None:
        text = json.dumps(header, separators=(",", ":")).encode()
        with self._lock:
            self._stream.write(struct.pack("<I", len(text)) + text + payload)
            self._stream.flush()


class Device:
    """One device's share of the statement, run job by job in a thread of its own."""

    def __init__(self, kind: str, index: int, dims: dict[str, int], identity: tuple[bytes, bytes], out: Output) -> None:
        self.index = index
        self.rows, self.k, self.columns = dims["rows"], dims["k"], dims["columns"]
        self.tile_rows = dims["tile_rows"]
        self.identity = identity
        self.out = out
        self.on_cuda = kind == "cuda"
        self.device = torch.device(kind, index if self.on_cuda else None)
        # On the CPU small steps keep the temporaries in its cache; on a GPU large ones keep it busy.
        self.step = 1024 if self.on_cuda else 256
        self.digest_step = self.step
        self.kernels = PLAIN
        self.keys: list[bytes] = []
        self.trees: list[list[list[bytes]]] = []
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        torch.set_num_threads(1)
        try:
            if self.on_cuda:
                torch.cuda.set_device(self.device)
            while True:
                self.jobs.get()()
        except BrokenPipeError:
            os._exit(0)
        except BaseException as error:
            give_up(self.out, error)

    def prepare(self) -> None:
        """Take the memory and warm the kernels on a throw-away seed."""
        entry = torch.float16 if self.on_cuda else torch.float32
        # Sums of a split K would be rounded to fp16 on their way together.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.c = torch.zeros((self.rows, self.columns), dtype=torch.int16, device=self.device)
        self.b = torch.zeros((self.k, self.columns), dtype=entry, device=self.device)
        self.a_tile = torch.zeros((self.tile_rows, self.k), dtype=entry, device=self.device)
        self.c_tile = torch.zeros((self.tile_rows, self.columns), dtype=torch.float32, device=self.device)
        if self.on_cuda:
            self.kernels = choose_kernels(self.device, self.columns)
        if self.kernels.fused:
            # A sixteenth of the temporaries a row; and many devices share one interpreter: few calls, large ones.
            self.digest_step = 16 * self.step
        self.a_seed = make_seed(b"warm")
        self.a_columns = column_keys(self.k, self.a_seed, self.device)
        self.commit(self.pass_keys(bytes(32)), self.fill_tile(0))
        self.synchronize()
        self.out.send({"type": "prepared", "device": self.index})

    def compute(self, nonce: bytes) -> None:
        """C = A·B, all of it, digested as it is made."""
        validator, miner = self.identity
        self.a_seed = make_seed(nonce, b"A", validator, miner, str(self.index).encode())
        self.a_columns = column_keys(self.k, self.a_seed, self.device)
        b_seed = make_seed(nonce, b"B")
        indices = torch.arange(self.k, device=self.device)
        b_columns = column_keys(self.columns, b_seed, self.device)
        generate(indices, b_seed, b_columns, self.b, self.step, self.kernels)
        key = hashlib.sha256(b"commit" + nonce).digest()
        key_words = self.pass_keys(key)
        digests = [self.commit(key_words, self.fill_tile(top)) for top in range(0, self.rows, self.tile_rows)]
        self.finish_pass(key, digests)

    def rehash(self, key: bytes, passes: int) -> None:
        """Digest C pass after pass; each pass's key is the hash of the root before."""
        for _ in range(passes):
            root = self.finish_pass(key, [self.commit(self.pass_keys(key), self.c)])
            key = hashlib.sha256(root).digest()

    def open(self, lines: Sequence[Sequence[int]]) -> None:
        """Send exact rows, and of each its digest block and path in the commitment and in the passes asked for.

        A line is a row and its passes.
        """
        a_rows = torch.empty((len(lines), self.k), dtype=self.b.dtype, device=self.device)
        indices = torch.tensor([line[0] for line in lines], device=self.device)
        generate(indices, self.a_seed, self.a_columns, a_rows, self.step, self.kernels)
        parts = [to_bytes(self.product(a_rows).to(torch.int32))]
        for row, *passes in lines:
            block = row // BLOCK_ROWS
            held = self.c[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
            for number in [0, *passes]:
                digests = self.commit(self.pass_keys(self.keys[number]), held)
                parts += [to_bytes(digests), tree_path(self.trees[number], block)]
        self.out.send({"type": "opened", "device": self.index}, b"".join(parts))

    def fill_tile(self, top: int) -> Any:
        """Compute rows ``top`` onwards of C into their place."""
        tile = self.c[top : top + self.tile_rows]
        a_tile, c_tile = self.a_tile[: tile.shape[0]], self.c_tile[: tile.shape[0]]
        indices = torch.arange(top, top + tile.shape[0], device=self.device)
        generate(indices, self.a_seed, self.a_columns, a_tile, self.step, self.kernels)
        self.product(a_tile, c_tile)
        for start in range(0, tile.shape[0], self.step):
            # Through int32: a float beyond int16 converts to nothing defined, an int32 wraps.
            tile[start : start + self.step] = c_tile[start : start + self.step].to(torch.int32)
        return tile

    def product(self, a: Any, out: Any = None) -> Any:
        """``a`` times B, exact in fp32 as every partial sum is an integer below 2^24."""
        if not self.on_cuda:
            return torch.mm(a, self.b, out=out)
        if out is None:
            return torch.mm(a, self.b, out_dtype=torch.float32)
        return torch.mm(a, self.b, out_dtype=torch.float32, out=out)

    def pass_keys(self, key: bytes) -> Any:
        words = struct.unpack("<4i", key[:16])
        return make_keys(torch.arange(self.columns // 2, device=self.device), words)

    def commit(self, key_words: Any, rows: Any) -> Any:
        return row_digests(rows, key_words, self.digest_step, self.kernels)

    def finish_pass(self, key: bytes, digests: list[Any]) -> bytes:
        levels = tree_levels(to_bytes(torch.cat(digests)))
        root = levels[-1][0]
        self.out.send({"type": "root", "device": self.index, "pass": len(self.trees)}, root)
        self.keys.append(key)
        # The blocks are digested again when opened: all digests of all passes would be gigabytes on a large card.
        self.trees.append(levels)
        return root

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)


def give_up(out: Output, error: BaseException) -> None:
    """Say why and end the process: a proof that failed on one device has failed."""
    text = f"{type(error).__name__}: {error}"
    memory = isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text
    printable = "".join(c if c.isprintable() else " " for c in text)[:200]
    try:
        out.send({"type": "failed", "code": "memory" if memory else "internal", "message": printable})
    finally:
        os._exit(1)


def describe(kind: str, count: int) -> list[dict[str, object]]:
    """What this machine has: the GPUs that torch sees, or as many threads of the CPU as are asked for."""
    if kind == "cpu":
        return [{"name": "CPU core", "uuid": None, "memory_bytes": 0}] * count
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append({"name": found.name, "uuid": f"GPU-{found.uuid}", "memory_bytes": found.total_memory})
    return devices


def read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        os._exit(0)  # the validator has gone, and with it the reason to use the devices
    return data


def serve(stream: BinaryIO, out: Output) -> None:
    """Answer frames until ``bye``. Devices work in their threads meanwhile."""
    devices: list[Device] = []
    while True:
        header = json.loads(read(stream, struct.unpack("<I", read(stream, 4))[0]))
        kind = header["type"]
        if kind == "hello":
            listed = describe(header["device"], header["count"])
            out.send({"type": "hello", "torch": torch.__version__, "devices": listed})
        elif kind == "prepare":
            available = describe(header["device"], header["count"])
            if len(available) < header["count"]:
                out.send({"type": "failed", "code": "devices", "message": f"{len(available)} devices here"})
                return
            identity = (header["validator"].encode(), header["miner"].encode())
            for index in range(header["count"]):
                devices.append(Device(header["device"], index, header["dims"], identity, out))
                devices[-1].jobs.put(devices[-1].prepare)
        elif kind == "compute":
            nonce = read(stream, 32)
            for device in devices:
                device.jobs.put(functools.partial(device.compute, nonce))
        elif kind == "rehash":
            key = read(stream, 32)
            for device in devices:
                device.jobs.put(functools.partial(device.rehash, key, header["passes"]))
        elif kind == "open":
            width = 1 + header["passes"]
            for device in devices:
                asked = read(stream, 4 * width * header["rows"])
                device.jobs.put(functools.partial(device.open, list(struct.iter_unpack(f"<{width}i", asked))))
        elif kind == "bye":
            return


def main() -> None:
    stream = sys.stdin.buffer
    # The libraries may print; only frames may reach the validator.
    out = Output(os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    try:
        serve(stream, out)
    except BaseException as error:
        give_up(out, error)
    os._exit(0)


if __name__ == "__main__":
    main()
