"""One source file into the store: streamed once, masked, and written run by run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import uuid4

import numpy as np
from zarr.abc.store import Store

from daskdecode.errors import SourceError, StoreError
from daskdecode.schema import BOLD, LABEL, TIME, VOXEL
from daskdecode.sources.nifti import stream_volumes, voxel_file_order
from daskdecode.sources.partition import Partition, SourceFile
from daskdecode.store.layout import (
    address,
    create_bold,
    delete_node,
    flag_attributes,
    read_attributes,
    time_chunk,
    write_group,
    write_vector,
)
from daskdecode.store.plan import source_entry
from daskdecode.store.progress import at_work, counted
from daskdecode.store.read import read_vector

BLOCK_NBYTES: Final = 8 * 2**20
CHUNKS_AT_ONCE: Final = 2
SOURCE_HEADER: Final = "source_header"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class WriteFile:
    """The work of one task; calling it writes all runs of a file that are not there yet.

    It may run twice, also at once (a scheduler that loses a worker repeats its tasks): runs that are whole are left alone, others are
    written by the one that began last, and the other gives way.

    Attributes
    ----------
    store : Store
    file : SourceFile
    source : dict
        The file's entry in the plan.
    nodes, fingerprints : tuple of str
        One for each partition of `file`.
    subject_node : str
    labels : list of str
        Labels in the order of their codes.
    """

    store: Store
    file: SourceFile
    source: dict[str, Any]
    nodes: tuple[str, ...]
    fingerprints: tuple[str, ...]
    subject_node: str
    labels: list[str]

    def __call__(self) -> None:
        """Stream and write.

        Raises
        ------
        CorruptFileError
            The file is damaged.
        SourceError
            The file was changed while it was read.
        StoreError
            A later task writes the same run.
        """
        with at_work(self.source["path"]):
            self._write()

    def _write(self) -> None:
        pending = [
            (p, node, fingerprint)
            for p, node, fingerprint in zip(self.file.partitions, self.nodes, self.fingerprints, strict=True)
            if not is_written(self.store, node, fingerprint)
        ]
        if not pending:
            return
        # Read here rather than sent along: a task then carries no arrays, and can run anywhere that reaches the store.
        subject = read_attributes(self.store, self.subject_node) or {}
        voxel = read_vector(self.store, f"{self.subject_node}/{VOXEL}")
        columns = voxel_file_order(voxel, self.file.header.shape)
        writers = [_RunWriter(self, p, node, columns, subject["voxels_per_chunk"]) for p, node, _ in pending]
        hasher = hashlib.sha256()
        blocks = read_ahead(stream_volumes(self.file.header, block_nbytes=BLOCK_NBYTES, hasher=hasher))
        for first, block in counted(blocks, self.source["path"]):
            for writer in writers:
                writer.add(first, block)
        # Only now: the checksum of a gzip file stands at its end.
        if source_entry(self.file) != self.source:
            raise SourceError(f"{self.file.path} was changed while it was converted. Convert again once nothing writes to it.")
        for writer, (_, _, fingerprint) in zip(writers, pending, strict=True):
            writer.finish(fingerprint, hasher.hexdigest())


def is_written(store: Store, node: str, fingerprint: str) -> bool:
    """Whether a run is whole and was written by this plan."""
    return (read_attributes(store, node) or {}).get("fingerprint") == fingerprint


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Take the next item in a thread while the caller works on the last one: decompressing and writing overlap."""
    with ThreadPoolExecutor(1, thread_name_prefix="daskdecode-read") as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


class _RunWriter:
    """Gathers a run's voxels from blocks of whole volumes and writes each time chunk at once.

    Memory: one time chunk of all kept voxels (at most :data:`~daskdecode.store.layout.SEGMENT_NBYTES`), and a few chunks being
    compressed. `columns` are the kept voxels' positions in a volume of the file.
    """

    def __init__(self, job: WriteFile, partition: Partition, node: str, columns: np.ndarray, voxels_per_chunk: int) -> None:
        header = job.file.header
        self._job, self._partition, self._node, self._columns = job, partition, node, columns
        self._dtype = header.dtype.newbyteorder("=")
        n_volumes = partition.stop - partition.start
        self._n_per_segment = time_chunk(n_volumes, len(columns), self._dtype.itemsize)
        self._n_written = self._n_gathered = 0
        self._buffer: np.ndarray | None = None
        self._voxels_per_chunk = voxels_per_chunk
        self._lowest, self._highest = (np.empty(0, self._dtype),) * 2
        self._mine = uuid4().hex
        delete_node(job.store, node)  # what a killed conversion left
        write_group(job.store, node, {"complete": False, "writer": self._mine})
        self._bold = create_bold(
            job.store,
            f"{node}/{BOLD}",
            shape=(n_volumes, len(columns)),
            chunks=(self._n_per_segment, voxels_per_chunk),
            dtype=self._dtype,
            scaling={"scale_factor": header.slope, "add_offset": header.intercept} if header.scaled else {},
        )

    def add(self, first: int, block: np.ndarray) -> None:
        """Take what a block of volumes, `first` and following of the file, holds of this run."""
        start = max(0, self._partition.start - first)
        stop = min(len(block), self._partition.stop - first)
        while start < stop:
            if self._buffer is None:
                self._buffer = np.empty((self._n_per_segment, len(self._columns)), self._dtype)
            segment = self._buffer[: len(self._partition.labels) - self._n_written]
            n = min(stop - start, len(segment) - self._n_gathered)
            into = segment[self._n_gathered : self._n_gathered + n]
            # mode="clip" writes straight into `out`; the default checks every index first, in a buffer.
            np.take(block[start : start + n].astype(self._dtype, copy=False), self._columns, axis=1, out=into, mode="clip")
            self._n_gathered += n
            start += n
            if self._n_gathered == len(segment):
                self._flush(segment)

    def _require_mine(self) -> None:
        """Give way to whoever has begun to write this run since.

        A task may run twice: elsewhere, when its worker was taken for lost, or in the next call, while a worker of another machine goes on
        with it though the driver was killed. What the later one has deleted must not be declared whole by the earlier one.
        """
        try:
            found = read_attributes(self._job.store, self._node) or {}
        except StoreError as error:
            raise error.__cause__ or error from None  # as of any other request of a task: who waits for it knows what is kept
        if found.get("writer") != self._mine:
            raise StoreError(f"{self._node} of {address(self._job.store)} is written anew by a later task: this one gives way.")

    def _flush(self, segment: np.ndarray) -> None:
        self._require_mine()
        # Two chunks at a time: Zarr would compress ten at once, each of which needs three times its size meanwhile.
        n_voxels = CHUNKS_AT_ONCE * self._voxels_per_chunk
        for first in range(0, segment.shape[1], n_voxels):
            at = (slice(self._n_written, self._n_written + len(segment)), slice(first, first + n_voxels))
            self._bold[at] = segment[:, at[1]]
        with np.errstate(invalid="ignore"):
            lowest, highest = segment.min(axis=0), segment.max(axis=0)  # NaN if any is
            if self._n_written:
                lowest, highest = np.minimum(lowest, self._lowest), np.maximum(highest, self._highest)
        self._lowest, self._highest = lowest, highest
        self._n_written += len(segment)
        self._n_gathered = 0
        if self._n_written == len(self._partition.labels):
            self._buffer = None  # other runs of the file come now

    def finish(self, fingerprint: str, sha256: str) -> None:
        """Write the small arrays and, last of all, the attributes that say that the run is whole."""
        self._require_mine()
        job, p, header = self._job, self._partition, self._job.file.header
        codes = np.searchsorted(np.array(job.labels), p.labels).astype(np.int32)
        write_vector(
            job.store,
            f"{self._node}/{TIME}",
            p.time_s.astype(np.float64),
            TIME,
            {"units": "s", "long_name": "time from the start of the run"},
        )
        write_vector(job.store, f"{self._node}/{LABEL}", codes, TIME, flag_attributes(job.labels))
        write_vector(job.store, f"{self._node}/{SOURCE_HEADER}", np.frombuffer(header.header_bytes, np.uint8), "header_byte")
        finite = np.isfinite(self._lowest) & np.isfinite(self._highest)
        attributes = {
            "complete": True,
            "fingerprint": fingerprint,
            "subject": p.subject,
            **({"session": p.session} if p.session is not None else {}),
            **({"task": p.task} if p.task is not None else {}),
            "run": p.run,
            "repetition_time": p.repetition_time,
            "slope": header.slope,
            "intercept": header.intercept,
            "n_nonfinite_voxels": int((~finite).sum()),
            "n_constant_voxels": int((finite & (self._lowest == self._highest)).sum()),
            "source": {**job.source, "sha256": sha256, "start": p.start, "stop": p.stop, "n_volumes": header.n_volumes},
            "sidecar": p.metadata,
            "coordinates": LABEL,
        }
        write_group(job.store, self._node, attributes)
