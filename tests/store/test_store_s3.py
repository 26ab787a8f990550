"""Studies on S3: a server process, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

import daskdecode as dd
from daskdecode.cli.main import main
from daskdecode.errors import StoreError
from daskdecode.study.decode import decode_study

pytestmark = [
    pytest.mark.slow,
    # A write that a cut wire ends leaves Zarr's coroutines unawaited and s3fs's sessions open. Python says so when it collects them, which
    # may be in the next test.
    pytest.mark.filterwarnings(r"ignore:(?s).*Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings(r"ignore:(?s).*Exception ignored in. <function ClientSession:pytest.PytestUnraisableExceptionWarning"),
]


class Wire:
    """Passes bytes on to a server until it is cut, by hand or as soon as a client sends `cut_at`."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server, self.cut_at = server, b""
        self._open: list[socket.socket] = []
        self._listening = self._listen(("127.0.0.1", 0))
        self.address = self._listening.getsockname()

    def _listen(self, address) -> socket.socket:
        listening = socket.create_server(address, reuse_port=False)
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return listening

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(self.server)
                self._open += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client, server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if self.cut_at and ready is client and self.cut_at in data:
                        self.cut()
                        return
                    (server if ready is client else client).sendall(data)

    def cut(self) -> None:
        self.cut_at = b""
        for one in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open = []

    def mend(self) -> None:
        self._listening = self._listen(self.address)


@pytest.fixture(scope="module")
def wire():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in settings.items():
            patched.setenv(name, value)
        try:
            _wait_for(port)
            wire = Wire(("127.0.0.1", port))
            patched.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*wire.address))
            import boto3
            import s3fs

            s3fs.S3FileSystem.clear_instance_cache()  # file systems of other tests know servers that are gone
            boto3.client("s3").create_bucket(Bucket="studies")
            yield wire
            s3fs.S3FileSystem.clear_instance_cache()
            wire.cut()
        finally:
            server.kill()
            server.wait()
            gc.collect()  # what was left open is told of here


def _wait_for(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError("the S3 server did not start")


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    return dd.simulate_study(tmp_path_factory.mktemp("s3") / "bids", n_subjects=2, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)


@pytest.fixture(scope="module")
def local(bids, tmp_path_factory) -> Path:
    return dd.convert(bids, tmp_path_factory.mktemp("s3") / "study.zarr", mask="none", progress=False)


def keys(prefix: str) -> list[str]:
    import boto3

    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="studies", Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def same(url: str, local: Path) -> bool:
    return all(
        np.array_equal(dd.open_subject(url, s).bold.values, dd.open_subject(local, s).bold.values)
        and dd.open_subject(url, s).label.equals(dd.open_subject(local, s).label)
        for s in ("01", "02")
    )


def test_from_s3_to_local_results(wire, bids, local, tmp_path):
    url = "s3://studies/whole.zarr"
    assert dd.convert(bids, url, mask="none", progress=False) == url
    assert same(url, local)
    decoder = dd.Decoder("ridge_classifier", memory_budget="1GB")
    expected = decode_study(local, decoder, labels=["face", "cat"], folder=tmp_path / "local", progress=False)
    found = decode_study(url, decoder, labels=["face", "cat"], folder=tmp_path / "s3", progress=False)
    assert found.drop_attrs().identical(expected.drop_attrs())
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="2GiB") as cluster,
        Client(cluster),
    ):
        spread = decode_study(url, decoder, labels=["face", "cat"], folder=tmp_path / "cluster", progress=False)
    assert spread.identical(found)
    assert dd.Decoder("ridge_classifier").fit(dd.select_labels(dd.open_subject(url, "02"), ["face", "cat"])).cv_scores_["face"] == (
        found.score.sel({"subject": "02", "class": "face"}).values.tolist()
    )


def test_a_server_that_goes_away_is_an_error_and_the_same_call_goes_on(wire, bids, local):
    dd.convert(bids, "s3://studies/whole.zarr", mask="none", progress=False)  # to compare with, whichever test comes first
    url = "s3://studies/cut.zarr"
    wire.cut_at = b"/cut.zarr/sub-02/run-02/bold/c/"
    with pytest.raises(StoreError, match=r"Writing s3://studies/cut.zarr failed: .*same call goes on from there"):
        dd.convert(bids, url, mask="none", progress=False)
    with pytest.raises(StoreError, match="cannot be reached"):
        dd.open_study(url)
    ran = CliRunner().invoke(main, ["info", url])
    assert ran.exit_code == 2
    assert ran.stderr.count("\n") == 1
    wire.mend()
    with pytest.raises(StoreError, match=r"has not finished: [1-6] of 6 runs are missing"):
        dd.open_study(url)
    dd.convert(bids, url, mask="none", progress=False)
    assert same(url, local)
    assert dd.verify(url, progress=False).ok
    assert {k.removeprefix("cut.zarr/") for k in keys("cut.zarr/")} == {k.removeprefix("whole.zarr/") for k in keys("whole.zarr/")}


def test_a_server_that_goes_away_while_a_study_is_decoded(wire, bids, tmp_path):
    dd.convert(bids, "s3://studies/whole.zarr", mask="none", progress=False)  # whichever test comes first
    url = "s3://studies/whole.zarr"
    decoder, options = dd.Decoder("ridge_classifier"), {"labels": ["face", "cat"], "folder": tmp_path, "progress": False}
    wire.cut_at = b"GET /studies/whole.zarr/sub-02/run-02/bold/c/"
    found = decode_study(url, decoder, **options)
    assert found.status.values.tolist() == ["done", "failed"]
    assert "s3://studies/whole.zarr cannot be reached" in str(found.reason.values[1])
    ran = CliRunner().invoke(main, ["decode", url, "--output", str(tmp_path)])
    assert ran.exit_code == 2
    assert "cannot be reached" in ran.stderr
    wire.mend()
    before = (tmp_path / "sub-01_desc-decoding_report.html").stat().st_mtime_ns
    assert decode_study(url, decoder, **options).status.values.tolist() == ["done", "done"]
    assert (tmp_path / "sub-01_desc-decoding_report.html").stat().st_mtime_ns == before


def test_through_obstore(wire, bids, local):
    obstore = pytest.importorskip("obstore.store")
    from zarr.storage import ObjectStore

    options = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "client_options": {"allow_http": True}, "virtual_hosted_style_request": False}
    store = ObjectStore(obstore.S3Store("studies", prefix="obstore.zarr", **options))
    assert dd.convert(bids, store, mask="none", progress=False) is store
    assert same("s3://studies/obstore.zarr", local)
    assert same(store, local)
    decoder = dd.Decoder("ridge_classifier")
    found = decode_study(store, decoder, labels=["face", "cat"], progress=False)
    expected = decode_study(local, decoder, labels=["face", "cat"], progress=False)
    assert found.drop_attrs().identical(expected.drop_attrs())
