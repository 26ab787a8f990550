"""The NIfTI reader against nibabel, over formats, dtypes and every way a file can be broken."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskdecode.errors import CorruptFileError, SourceError
from daskdecode.sources.nifti import check_length, read_header, stream_volumes, voxel_file_order, write_nifti

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0.1, 0, 60], [0, 3.75, 0.2, -35], [0, 0, 4.5, -12], [0, 0, 0, 1]])
ENDINGS = (".nii", ".nii.gz", ".img", ".img.gz", ".hdr")


def _values(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Every kind of value that the type can hold, its limits and (for floats) NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype=dtype).reshape(shape, order="F").copy(order="F")
    if dtype.kind == "f":
        values[0, 0, 0, :2] = [np.nan, np.inf]
    return values


def _save(folder: Path, ending: str = ".nii.gz", *, dtype="<i2", n=11, version=1, scaling=None, extension=b"", seed=0, tr=2.5) -> Path:
    """Write an image with nibabel's header but the stored values that we choose."""
    dtype = np.dtype(dtype)
    pair = ending.startswith((".img", ".hdr"))
    classes = {(1, False): nib.Nifti1Image, (2, False): nib.Nifti2Image, (1, True): nib.Nifti1Pair, (2, True): nib.Nifti2Pair}
    header = classes[version, pair].header_class(endianness="<" if dtype.newbyteorder("<") == dtype else ">")
    header.set_data_dtype(dtype)
    header.set_data_shape((*SHAPE, n))
    header.set_sform(AFFINE, 2)
    header.set_zooms((3.0, 3.75, 4.5, tr))
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = scaling or (np.nan, np.nan)
    block = header.binaryblock
    extensions = b"\0\0\0\0"
    if extension:
        padded = extension + b"\0" * (-(len(extension) + 8) % 16)
        order = "<" if header.endianness == "<" else ">"
        extensions = b"\1\0\0\0" + struct.pack(order + "ii", len(padded) + 8, 6) + padded
    offset = 0 if pair else len(block) + len(extensions)
    header["vox_offset"] = offset
    head = header.binaryblock + extensions
    data = _values(dtype, (*SHAPE, n), seed).tobytes(order="F")
    path = folder / f"bold{ending}"
    if not pair:
        _write(path, head + data)
    else:
        gz = ".gz" if ending.endswith(".gz") else ""
        _write(folder / f"bold.hdr{gz}", head)
        _write(folder / f"bold.img{gz}", data)
    return path


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)


def _read(path: Path, **options) -> np.ndarray:
    """All stored values as (i, j, k, time)."""
    header = read_header(path)
    firsts, blocks = zip(*stream_volumes(header, **options), strict=True)
    assert list(firsts) == [0, *itertools.accumulate(map(len, blocks))][:-1]
    return np.concatenate(blocks, dtype=header.dtype).T.reshape(*header.shape, header.n_volumes, order="F")


# --- reading ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["<i2", "|u1", "<i4", "<f4", "<f8", ">i2", ">f4", "<u2", "|i1", "<i8"])
@pytest.mark.parametrize("scaling", [None, (0.25, -3.0)])
def test_stored_values_and_header_equal_nibabel(tmp_path, ending, dtype, scaling):
    path = _save(tmp_path, ending, dtype=dtype, scaling=scaling)
    header = read_header(path)
    theirs = nib.load(path)
    stored = _read(path, block_nbytes=3 * header.volume_nbytes + 1)
    assert header.dtype == np.dtype(dtype)
    assert all(block.dtype == header.dtype for _, block in stream_volumes(header))
    assert stored.tobytes(order="F") == theirs.dataobj.get_unscaled().tobytes(order="F")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(stored.astype(float) * header.slope + header.intercept, theirs.get_fdata())
    assert header.scaled is (scaling is not None)
    assert (header.slope, header.intercept) == (scaling or (1.0, 0.0))
    np.testing.assert_array_equal(header.affine, theirs.affine)
    assert (header.shape, header.n_volumes, header.repetition_time_s) == (SHAPE, 11, 2.5)
    assert (header.qform_code, header.sform_code) == (0, 2)
    np.testing.assert_allclose(header.zooms, theirs.header.get_zooms()[:3])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("extension", [b"", b"<a comment/>" * 50])
@pytest.mark.parametrize("version", [1, 2])
def test_header_bytes_are_kept_bit_for_bit_with_extensions(tmp_path, ending, extension, version):
    path = _save(tmp_path, ending, version=version, extension=extension)
    header = read_header(path)
    first_file = header.path.with_name(header.path.name.replace("img", "hdr"))
    whole = first_file.read_bytes()
    whole = gzip.decompress(whole) if first_file.suffix == ".gz" else whole
    assert header.header_bytes == (whole if header.path != first_file or ending == ".hdr" else whole[: header.data_offset])
    assert extension in header.header_bytes
    assert _read(path).tobytes(order="F") == _values(np.dtype("<i2"), (*SHAPE, 11)).tobytes(order="F")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 30), block=st.integers(1, 20_000), gz=st.booleans())
def test_blocks_of_any_size_make_the_same_image(tmp_path, n, block, gz):
    path = _save(tmp_path, ".nii.gz" if gz else ".nii", n=n)
    header = read_header(path)
    sizes = [b.nbytes for _, b in stream_volumes(header, block_nbytes=block)]
    assert max(sizes) <= max(block, header.volume_nbytes)
    assert _read(path, block_nbytes=block).tobytes(order="F") == _values(np.dtype("<i2"), (*SHAPE, n)).tobytes(order="F")


def _members(content: bytes, size: int) -> bytes:
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    return b"".join(gzip.compress(p, 1) for p in pieces)


@pytest.mark.parametrize("end", [b"", gzip.compress(b""), b"\0" * 512], ids=["plain", "bgzip's empty last member", "zero padding"])
def test_gzip_of_several_members_is_read_whole(tmp_path, end):
    path = _save(tmp_path)
    expected = _read(path)
    path.write_bytes(_members(gzip.decompress(path.read_bytes()), 777) + end)
    hasher = hashlib.sha256()
    header = read_header(path)
    check_length(header)
    np.testing.assert_array_equal(_read(path, block_nbytes=2000, hasher=hasher), expected)
    assert hasher.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", ENDINGS)
def test_hasher_sees_the_file_on_disk_in_one_pass(tmp_path, ending):
    path = _save(tmp_path, ending)
    header = read_header(path)
    hasher = hashlib.sha256()
    for _ in stream_volumes(header, block_nbytes=5000, hasher=hasher):
        pass
    assert hasher.hexdigest() == hashlib.sha256(header.data_path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_memory_is_bounded_by_blocks_not_by_the_image(tmp_path, ending):
    peaks = []
    for n in (400, 3000):
        header = read_header(_save(tmp_path, ending, n=n))
        tracemalloc.start()
        for _ in stream_volumes(header, block_nbytes=100_000):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert header.data_nbytes > 3_000_000
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 2 * 100_000 + 2 * 2**20  # two blocks, isal's buffer and what is read after the last volume


def test_voxel_file_order_is_fortran_order():
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    voxel = np.array([0, 5, 100, 333, volume.size - 1])
    np.testing.assert_array_equal(volume.ravel(order="F")[voxel_file_order(voxel, SHAPE)], volume.ravel()[voxel])


@pytest.mark.parametrize("version", [1, 2])
def test_single_file_that_leaves_its_offset_unset(tmp_path, version):
    path = _save(tmp_path, ".nii", version=version)
    expected, content = _read(path), bytearray(path.read_bytes())
    where = slice(108, 112) if version == 1 else slice(168, 176)
    content[where] = bytes(len(content[where]))
    path.write_bytes(content)
    assert read_header(path).data_offset == (352 if version == 1 else 544)
    np.testing.assert_array_equal(_read(path), expected)


def test_content_not_name_tells_gzip(tmp_path):
    path = _save(tmp_path, ".nii.gz")
    renamed = path.rename(tmp_path / "misnamed.nii")
    assert read_header(renamed).is_compressed
    assert _read(renamed).shape == (*SHAPE, 11)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("sec", 2.5, 2.5),
        ("msec", 2500, 2.5),
        ("usec", 2.5e6, 2.5),
        ("unknown", 2.5, 2.5),
        ("unknown", 2500, None),
        ("hz", 2, None),
        ("sec", 0, None),
    ],
)
def test_repetition_time_respects_its_unit(tmp_path, unit, value, expected):
    image = nib.Nifti1Image(np.zeros((*SHAPE, 3), np.int16), AFFINE)
    image.header.set_zooms((1, 1, 1, value))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, tmp_path / "bold.nii")
    assert read_header(tmp_path / "bold.nii").repetition_time_s == expected


# --- writing ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("dtype", "scaling"), [("<i2", None), (">f4", (2.0, 1.0)), ("|u1", None), ("<f8", None)])
def test_written_again_an_image_is_the_same(tmp_path, ending, dtype, scaling):
    source = read_header(_save(tmp_path, ending, dtype=dtype, scaling=scaling, extension=b"kept"))
    (tmp_path / "copy").mkdir()
    written = write_nifti(
        tmp_path / "copy" / source.path.name, source.header_bytes, (b for _, b in stream_volumes(source, block_nbytes=9999))
    )
    copy = read_header(written)
    assert copy.header_bytes == source.header_bytes
    assert _read(written).tobytes() == _read(source.path).tobytes()
    if not source.is_compressed:
        assert copy.data_path.read_bytes() == source.data_path.read_bytes()
    first = copy.data_path.read_bytes()
    write_nifti(written, source.header_bytes, (b for _, b in stream_volumes(source)))
    assert copy.data_path.read_bytes() == first or source.is_compressed
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == sorted({copy.data_path.name, copy.data_path.name.replace("img", "hdr")})


def test_equal_input_gives_equal_bytes(tmp_path):
    source = read_header(_save(tmp_path))
    blocks = [b for _, b in stream_volumes(source)]
    one, two = (write_nifti(tmp_path / name, source.header_bytes, blocks).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    assert one[4:8] == bytes(4), "no time in the gzip header"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "spoil",
    [lambda b: b[:-1], lambda b: np.concatenate([b, b]), lambda b: b[:, :-1], lambda b: b.astype(np.float32)],
    ids=["a volume short", "twice as long", "other grid", "other dtype"],
)
def test_blocks_that_do_not_suit_the_header_write_nothing(tmp_path, ending, spoil):
    source = read_header(_save(tmp_path))
    blocks = [spoil(b) for _, b in stream_volumes(source)]
    target = tmp_path / "new" / f"copy{ending}"
    target.parent.mkdir()
    with pytest.raises(SourceError, match="header announces"):
        write_nifti(target, source.header_bytes, blocks)
    assert list(target.parent.iterdir()) == []


def test_header_of_a_pair_is_not_written_as_single_file(tmp_path):
    source = read_header(_save(tmp_path, ".img"))
    with pytest.raises(SourceError, match="another kind of NIfTI"):
        write_nifti(tmp_path / "copy.nii", source.header_bytes, [])


# --- broken files -----------------------------------------------------------------------------------------------------------------


def _whole_reading(path: Path) -> bytes:
    header = read_header(path)
    check_length(header)
    return b"".join(b.tobytes() for _, b in stream_volumes(header, block_nbytes=4000))


@pytest.mark.parametrize(
    ("ending", "several_members"), [(".nii", False), (".nii.gz", False), (".nii.gz", True), (".img", False), (".img.gz", False)]
)
def test_file_cut_anywhere_is_an_error_before_reading(tmp_path, ending, several_members):
    path = _save(tmp_path, ending, n=5)
    if several_members:
        path.write_bytes(_members(gzip.decompress(path.read_bytes()), 777))
    whole = path.read_bytes()
    for cut in [*range(0, 700, 7), *range(700, len(whole), 97), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="bold") as caught:
            check_length(read_header(path))
        assert str(path) in str(caught.value)
        if cut > 400:
            assert isinstance(caught.value, CorruptFileError)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_gzip_with_one_byte_changed_is_an_error_or_reads_the_same(tmp_path, where, flip):
    path = _save(tmp_path, n=3)
    content = bytearray(path.read_bytes())
    expected = _whole_reading(path)
    content[int(where * len(content))] ^= flip
    path.write_bytes(bytes(content))
    try:
        found = _whole_reading(path)
    except SourceError:
        return
    # Some bytes say nothing about the data: time and system in the gzip header, codes that a deflate table never uses.
    assert found == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 351), value=st.integers(0, 255), gz=st.booleans())
def test_header_with_one_byte_changed_is_read_or_explained(tmp_path, where, value, gz):
    path = _save(tmp_path, ".nii.gz" if gz else ".nii", n=3)
    content = bytearray(gzip.decompress(path.read_bytes()) if gz else path.read_bytes())
    content[where] = value
    _write(path, bytes(content))
    try:
        _whole_reading(path)
    except SourceError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_end_early_or_go_on(tmp_path, ending):
    path = _save(tmp_path, ending, n=5)
    header = read_header(path)
    content = gzip.decompress(path.read_bytes()) if header.is_compressed else path.read_bytes()
    _write(path, content[: -header.volume_nbytes - 1])
    with pytest.raises(CorruptFileError, match=r"ends in volume 3, .*5 volumes of 7 x 8 x 9 int16.*truncated"):
        check_length(read_header(path))
    _write(path, content + bytes(header.volume_nbytes))
    with pytest.raises(CorruptFileError, match="holds more volumes than the 5"):
        check_length(read_header(path))
    _write(path, content + bytes(100))
    assert _whole_reading(path) == content[header.data_offset :]


def test_checksum_error_is_found_though_the_length_is_right(tmp_path):
    path = _save(tmp_path, n=500)
    raw = gzip.decompress(path.read_bytes())
    packer = zlib.compressobj(0, wbits=-15)
    body = packer.compress(raw) + packer.flush()
    path.write_bytes(gzip.compress(b"")[:10] + body + struct.pack("<II", zlib.crc32(raw) ^ 1, len(raw)))
    header = read_header(path)
    check_length(header)
    with pytest.raises(CorruptFileError, match="CRC"):
        list(stream_volumes(header))


@pytest.mark.parametrize("hasher", [None, hashlib.sha256])
@pytest.mark.parametrize("where", [-8, -5, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_flipped_byte_is_found_with_and_without_a_hasher(tmp_path, where, hasher):
    """In the checksum (negative: from the end) or in the compressed voxels."""
    path = _save(tmp_path, n=200)
    header = read_header(path)
    content = bytearray(path.read_bytes())
    content[where if where < 0 else int(where * len(content))] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match=r"bold\.nii\.gz is damaged (in or soon after volume|after its last volume)"):
        for _ in stream_volumes(header, block_nbytes=20 * header.volume_nbytes, hasher=hasher() if hasher else None):
            pass


def test_header_that_announces_too_much_for_a_gzip_file_reads_nothing(tmp_path):
    path = _save(tmp_path, n=3)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:50] = struct.pack("<4h", 32767, 32767, 32767, 32767)
    _write(path, bytes(content))
    with pytest.raises(CorruptFileError, match="cannot hold"):
        check_length(read_header(path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 8, 9), "3-D"),
        ((7, 8, 9, 0), "no volumes"),
        ((7, 0, 9, 3), "no voxels"),
        ((7, 8, 9, 3, 2), "5 dimensions"),
        ((7, 8), "2 dimensions"),
    ],
)
def test_images_that_are_no_runs(tmp_path, shape, message):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), AFFINE), tmp_path / "bold.nii.gz")
    with pytest.raises(SourceError, match=message):
        read_header(tmp_path / "bold.nii.gz")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_values_that_are_not_real_numbers(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), dtype), AFFINE), tmp_path / "bold.nii")
    with pytest.raises(SourceError, match="integers or floats"):
        read_header(tmp_path / "bold.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_affine_that_cannot_be_inverted(tmp_path, value):
    image = nib.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), None)
    for row in "xyz":
        image.header[f"srow_{row}"] = value
    image.header["sform_code"] = 1
    (tmp_path / "bold.nii").write_bytes(image.header.binaryblock + bytes(4) + bytes(2 * 2 * 504))
    with pytest.raises(SourceError, match="affine"):
        read_header(tmp_path / "bold.nii")


def test_files_that_are_no_nifti(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_header(tmp_path / "absent.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(SourceError, match="is a folder"):
        read_header(tmp_path / "folder.nii")
    (tmp_path / "image.mgz").touch()
    with pytest.raises(SourceError, match=r"expected \.nii"):
        read_header(tmp_path / "image.mgz")
    (tmp_path / "text.nii").write_text("hello " * 200)
    with pytest.raises(SourceError, match="not a NIfTI image"):
        read_header(tmp_path / "text.nii")
    (tmp_path / "empty.nii").touch()
    with pytest.raises(CorruptFileError, match="has 0 bytes"):
        read_header(tmp_path / "empty.nii")
    nib.save(nib.AnalyzeImage(np.zeros((*SHAPE, 2), np.int16), np.eye(4)), tmp_path / "analyze.img")
    with pytest.raises(SourceError, match=r"Analyze 7\.5"):
        read_header(tmp_path / "analyze.img")
    _save(tmp_path, ".img")
    (tmp_path / "bold.hdr").unlink()
    with pytest.raises(SourceError, match=r"one half of a \.hdr/\.img pair"):
        read_header(tmp_path / "bold.img")


def test_real_image_equals_nibabel(shared_data):
    path = shared_data / "haxby-slice" / "bold.nii.gz"
    np.testing.assert_array_equal(_read(path, block_nbytes=200_000), np.asarray(nib.load(path).dataobj))
