"""Sources against real servers on this machine: an S3 server (moto), and a web server that counts requests."""

import base64
import gzip
import http.server
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
import traceback
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fiducial.data import sources
from fiducial.data.cache import Cache, default_cache_dir, digest
from fiducial.data.remote import is_remote, public_url, redact
from fiducial.data.sources import local_file, local_path, unwrapped
from fiducial.errors import MissingDependencyError, SourceError

KEY = "dataset.classify.train_dataset.images_dir"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar_gz(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def pack(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as box:
            for name, data in files.items():
                box.writestr(name, data)
    else:
        packed = tar_gz(files)
        path.write_bytes(gzip.decompress(packed) if path.suffix == ".tar" else packed)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def snapshot(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Web:
    """A web server; ``files`` maps paths to bytes, ``asked`` lists (method, path)."""

    def __init__(self):
        self.files, self.asked, self.etags, self.cut, self.password = {}, [], True, False, None
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(send=False)

            def do_GET(self):
                self.answer(send=True)

            def answer(self, send):
                path = urlsplit(self.path).path
                web.asked.append((self.command, path))
                body = web.files.get(path)
                allowed = web.password in (None, self.headers.get("Authorization"))
                status = 401 if not allowed else 404 if body is None else 200
                self.send_response(status)
                body = body if status == 200 else b""
                self.send_header("Content-Length", str(len(body)))
                if status == 200 and web.etags:
                    self.send_header("ETag", f'"{digest(body.hex())[:16]}"')
                self.end_headers()
                if send:
                    self.wfile.write(body[: len(body) // 2] if web.cut else body)
                    self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def gets(self):
        return [path for method, path in self.asked if method == "GET"]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def web():
    server = Web()
    yield server
    server.stop()


class TestLocal:
    def test_a_file_or_folder_is_itself_and_nothing_is_cached(self, tmp_path, cache_dir):
        (tmp_path / "rows.csv").touch()
        for path in (tmp_path, tmp_path / "rows.csv"):
            assert local_path(str(path), key=KEY) == path
            assert local_path(f"file://{path}", key=KEY) == path
        assert not cache_dir.exists()

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert local_path("~", key=KEY) == tmp_path

    def test_missing(self, tmp_path):
        (tmp_path / "images").mkdir()
        with pytest.raises(SourceError, match=rf"{KEY} · no file or folder '.*imagse' · did you mean images\?"):
            local_path(str(tmp_path / "imagse"), key=KEY)
        with pytest.raises(SourceError, match=r"only .* exists.*--map-path"):
            local_path(str(tmp_path / "no" / "x"), key=KEY)
        with pytest.raises(SourceError, match="an empty path"):
            local_path(" ", key=KEY)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("a\0b", "NUL"),
            ("x" * 300, "a name longer than the disk takes"),
            ("link", "a link to nowhere, which is not there"),
            ("circle", "a link to itself"),
            ("pipe", "a device or a pipe"),
            ("data\\images", "backslashes"),
            ("file/images", r"file is a file, not a folder"),
            ("file://", "names no path of this machine"),
            ("file://folder/file", "names no path of this machine"),
            ("file:///no%00thing", "NUL"),
            ("~nobody-is-called-this/x", "no file or folder"),
        ],
    )
    def test_names_that_lead_nowhere(self, tmp_path, name, told):
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("nowhere")
        (tmp_path / "circle").symlink_to("circle")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(SourceError, match=told):
            local_path(name if name.startswith(("~", "file:/")) else f"{tmp_path}/{name}", key=KEY)

    def test_names_that_are_no_text_can_be_told(self, tmp_path):
        (tmp_path / os.fsdecode(b"images\xff")).mkdir()
        with pytest.raises(SourceError, match="did you mean images") as caught:
            local_path(str(tmp_path / "images"), key=KEY)
        assert str(caught.value).encode()

    def test_nothing_is_sent_for_a_path(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "fetch", None)  # would fail if called
        assert local_path(str(tmp_path), key=KEY) == tmp_path

    def test_unknown_scheme(self):
        with pytest.raises(SourceError, match="no way to fetch ftp://"):
            local_path("ftp://user:hunter2@host/x", key=KEY)

    @pytest.mark.parametrize("url", ["http://[::1", "http://host:99999/x", "http://host:abc/x"])
    def test_urls_that_are_none(self, url):
        with pytest.raises(SourceError, match="not a valid URL"):
            local_path(url, key=KEY)

    def test_where_the_cache_is(self, monkeypatch):
        assert default_cache_dir() == Path(os.environ["FIDUCIAL_CACHE"])
        monkeypatch.delenv("FIDUCIAL_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/x")
        assert default_cache_dir() == Path("/x/fiducial")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_cache_dir() == Path.home() / ".cache" / "fiducial"

    def test_a_cache_that_cannot_be_written(self, tmp_path):
        (tmp_path / "x.tgz").write_bytes(tar_gz({"a": b""}))
        (tmp_path / "file").touch()
        with pytest.raises(SourceError, match="FIDUCIAL_CACHE"):
            local_path(str(tmp_path / "x.tgz"), key=KEY, cache_dir=tmp_path / "file")


def in_two_processes(value):
    """What ``local_path`` says in two programs that start together."""
    code = "import sys; from fiducial.data.sources import local_path; print(local_path(sys.argv[1], key='k'))"
    programs = [
        subprocess.Popen([sys.executable, "-c", code, value], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    return [Path(program.communicate(timeout=60)[0].strip()) for program in programs]


class TestLocalArchive:
    def test_same_bytes_are_unpacked_once(self, tmp_path, monkeypatch):
        unpacked = []
        real = sources.extract
        monkeypatch.setattr(sources, "extract", lambda archive, into: (unpacked.append(archive), real(archive, into)))
        for name in ("a.tar.gz", "b.tgz"):
            (tmp_path / name).write_bytes(tar_gz({"images/x.jpg": b"x"}))
        folders = {local_path(str(tmp_path / name), key=KEY) for name in ("a.tar.gz", "b.tgz", "a.tar.gz")}
        assert len(folders) == len(unpacked) == 1
        assert contents(folders.pop()) == {"images/x.jpg": b"x"}

    def test_a_changed_archive_is_another_folder(self, tmp_path):
        for data in (b"old", b"newer"):
            with zipfile.ZipFile(tmp_path / "x.zip", "w") as box:
                box.writestr("x.jpg", data)
            assert contents(local_path(str(tmp_path / "x.zip"), key=KEY)) == {"x.jpg": data}

    def test_an_unsafe_archive_names_the_key_and_leaves_nothing(self, tmp_path, cache_dir):
        (tmp_path / "x.tgz").write_bytes(tar_gz({"a": b"", "../evil": b""}))
        with pytest.raises(SourceError, match=rf"{KEY} \(.*x\.tgz\) · entry '../evil' leads out"):
            local_path(str(tmp_path / "x.tgz"), key=KEY)
        assert not list((cache_dir / "partial").iterdir())
        assert not (cache_dir / "unpacked").exists()

    def test_an_archive_that_is_gone_but_was_unpacked_by_hand(self, tmp_path, caplog):
        (tmp_path / "train").mkdir()
        assert local_path(str(tmp_path / "train.tar.gz"), key=KEY) == tmp_path / "train"
        assert "is gone" in caplog.text

    @pytest.mark.parametrize("name", ["x.tar.gz", "x.zip", "x.tar"])
    def test_something_in_an_archive(self, tmp_path, name):
        pack(tmp_path / name, {"lists/rows.csv": b"rows", "lists/other.csv": b"", "a.png": b"x"})
        assert local_path(f"{tmp_path / name}/lists/rows.csv", key=KEY).read_bytes() == b"rows"
        assert local_path(f"{tmp_path / name}/lists", key=KEY).is_dir()
        with pytest.raises(SourceError, match=r"no 'lists/row.csv' in the archive .* it holds lists/rows\.csv"):
            local_path(f"{tmp_path / name}/lists/row.csv", key=KEY)
        with pytest.raises(SourceError, match=r"no '\.\./secret' in the archive"):
            local_path(f"{tmp_path / name}/../secret", key=KEY)

    def test_the_one_file_of_an_archive(self, tmp_path):
        pack(tmp_path / "one.zip", {"in/rows.csv": b"rows", "a.png": b"x"})
        assert local_file(str(tmp_path / "one.zip"), key=KEY, suffix=".csv").read_bytes() == b"rows"
        assert local_file(f"{tmp_path}/one.zip/in/rows.csv", key=KEY, suffix=".csv").read_bytes() == b"rows"
        pack(tmp_path / "none.tar", {"a.png": b"x"})
        with pytest.raises(SourceError, match=r"no \*\.csv file in .*none\.tar"):
            local_file(str(tmp_path / "none.tar"), key=KEY, suffix=".csv")
        pack(tmp_path / "two.tar.gz", {"a.csv": b"", "b/c.csv": b""})
        with pytest.raises(SourceError, match=r"2 \*\.csv files in .*: a\.csv, b/c\.csv · name one: <archive>/<file>"):
            local_file(str(tmp_path / "two.tar.gz"), key=KEY, suffix=".csv")
        (tmp_path / "rows.csv").touch()
        with pytest.raises(SourceError, match=r"is a folder, not a file \(it holds rows\.csv\)"):
            local_file(str(tmp_path), key=KEY, suffix=".csv")

    def test_a_folder_that_only_holds_an_archive(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, "fiducial")
        folder = tmp_path / "data"
        folder.mkdir()
        assert unwrapped(folder, key=KEY) == folder
        pack(folder / "images.tar.gz", {"boards/a.png": b"x"})
        (folder / "dataset.csv").touch()
        assert contents(unwrapped(folder, key=KEY)) == {"boards/a.png": b"x"}
        assert "holds an archive alone" in caplog.text
        (folder / "boards").mkdir()
        assert unwrapped(folder, key=KEY) == folder
        (folder / "boards").rmdir()
        pack(folder / "more.zip", {})
        assert unwrapped(folder, key=KEY) == folder
        assert unwrapped(folder / "dataset.csv", key=KEY) == folder / "dataset.csv"

    def test_leftovers_of_a_crash_do_no_harm(self, tmp_path, cache_dir):
        (tmp_path / "x.tgz").write_bytes(tar_gz({"a": b"1"}))
        leftover = cache_dir / "partial" / f"unpacked-{digest(tmp_path / 'x.tgz')}"
        leftover.mkdir(parents=True)
        (leftover / "half").touch()
        assert contents(local_path(str(tmp_path / "x.tgz"), key=KEY)) == {"a": b"1"}

    def test_two_processes_at_once(self, tmp_path):
        (tmp_path / "x.tgz").write_bytes(tar_gz({f"{n}.jpg": os.urandom(2000) for n in range(300)}))
        one, other = in_two_processes(str(tmp_path / "x.tgz"))
        assert one == other
        assert len(contents(one)) == 300


class TestWeb:
    def test_a_file_keeps_its_name_and_comes_once(self, web):
        web.files["/data/rows%20one.csv"] = b"a,b"
        for _ in range(3):
            path = local_path(f"{web.url}/data/rows%20one.csv".replace("http", "HTTP"), key=KEY)
        assert (path.name, path.read_bytes()) == ("rows one.csv", b"a,b")
        assert len(web.gets()) == 1

    def test_an_archive_becomes_a_folder_once(self, web):
        web.files["/images.tar.gz"] = tar_gz({"images/x.jpg": b"x"})
        folders = {local_path(f"{web.url}/images.tar.gz", key=KEY) for _ in range(3)}
        assert contents(folders.pop()) == {"images/x.jpg": b"x"}
        assert not folders
        assert len(web.gets()) == 1

    def test_two_processes_at_once_fetch_once(self, web):
        web.files["/images.tgz"] = tar_gz({f"{n}.jpg": os.urandom(2000) for n in range(300)})
        one, other = in_two_processes(f"{web.url}/images.tgz")
        assert one == other
        assert len(contents(one)) == 300
        assert web.gets() == ["/images.tgz"]

    def test_a_changed_file_comes_again_and_the_old_one_stays(self, web):
        web.files["/x.csv"] = b"old"
        old = local_path(f"{web.url}/x.csv", key=KEY)
        web.files["/x.csv"] = b"new"
        new = local_path(f"{web.url}/x.csv", key=KEY)
        assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")

    def test_without_an_etag_it_comes_every_time(self, web):
        web.etags = False
        web.files["/x.csv"] = b"1"
        paths = {local_path(f"{web.url}/x.csv", key=KEY) for _ in range(2)}
        assert len(paths) == 1  # the same content
        assert len(web.gets()) == 2

    @pytest.mark.parametrize(
        "damage",
        [
            {"objects": None},
            {"objects": []},
            {"objects": {"x.bin": None}},
            {"objects": {"x.bin": {"version": 3, "sha256": None}}},
            {"objects": {"x.bin": {}}},
            {"single": "other"},
            {"single": ["x"]},
            {"tree": None},
            {"tree": 3},
        ],
    )
    def test_a_damaged_record_is_as_good_as_none(self, web, cache_dir, damage):
        web.files["/x.bin"] = b"abc"
        local_path(f"{web.url}/x.bin", key=KEY)
        (record,) = (cache_dir / "records").iterdir()
        record.write_text(json.dumps(json.loads(record.read_text()) | damage))
        assert local_path(f"{web.url}/x.bin", key=KEY).read_bytes() == b"abc"

    def test_two_urls_with_the_same_content_share_one_blob(self, web, cache_dir):
        web.files["/a.csv"] = web.files["/b.csv"] = b"same"
        assert local_path(f"{web.url}/a.csv", key=KEY).samefile(local_path(f"{web.url}/b.csv", key=KEY))
        assert [blob.name for blob in (cache_dir / "blobs").iterdir()] == [Cache(cache_dir).blob(digest("same")).name]

    def test_offline_with_a_copy(self, web, caplog):
        web.files["/x.csv"] = b"1"
        online = local_path(f"{web.url}/x.csv", key=KEY)
        web.server.server_close()
        web.server.shutdown()
        assert local_path(f"{web.url}/x.csv", key=KEY) == online
        assert "cannot be reached" in caplog.text
        assert "using the earlier copy" in caplog.text

    def test_offline_without_a_copy(self, web):
        web.server.server_close()
        web.server.shutdown()
        with pytest.raises(SourceError, match=rf"{KEY} · .*/x\.csv cannot be reached"):
            local_path(f"{web.url}/x.csv", key=KEY)

    def test_missing_at_the_server_is_an_error_even_with_a_copy(self, web):
        web.files["/x.csv"] = b"1"
        local_path(f"{web.url}/x.csv", key=KEY)
        del web.files["/x.csv"]
        with pytest.raises(SourceError, match=r"nothing at .*/x\.csv \(.*404\)"):
            local_path(f"{web.url}/x.csv", key=KEY)

    def test_a_download_that_breaks_off_leaves_no_final_name(self, web, cache_dir):
        web.files["/x.csv"], web.cut = bytes(10_000), True
        with pytest.raises(SourceError, match=r"cannot be reached|of 10000 bytes"):
            local_path(f"{web.url}/x.csv", key=KEY)
        assert not (cache_dir / "blobs").exists()
        assert not (cache_dir / "trees").exists()
        web.cut = False
        assert local_path(f"{web.url}/x.csv", key=KEY).stat().st_size == 10_000

    def test_a_server_is_no_file(self, web):
        with pytest.raises(SourceError, match="names no file"):
            local_path(f"{web.url}/", key=KEY)
        assert not web.asked

    def test_progress_is_logged(self, web, caplog):
        web.files["/x.csv"] = bytes(3 << 20)
        with caplog.at_level(logging.INFO, "fiducial"):
            local_path(f"{web.url}/x.csv", key=KEY)
        assert f"{KEY}: {web.url}/x.csv: fetching 1 file, 3.0 MiB" in caplog.text


class TestSecrets:
    SECRETS = ("hunter2", "SIGNATURE", "alice")

    def url(self, web, path):
        host = web.url.removeprefix("http://")
        return f"http://alice:hunter2@{host}{path}?X-Amz-Signature=SIGNATURE&id=7"

    def assert_silent(self, *texts):
        assert not [secret for secret in self.SECRETS for text in texts if secret in text]

    def test_not_in_errors_tracebacks_or_log(self, web, caplog):
        url = self.url(web, "/x.csv")
        web.password = "nobody's"
        for prepare in (lambda: None, web.server.server_close):  # denied, then unreachable
            prepare()
            with caplog.at_level(logging.INFO), pytest.raises(SourceError) as caught:
                local_path(url, key=KEY)
            self.assert_silent(str(caught.value), "".join(traceback.format_exception(caught.value)), caplog.text)

    def test_used_for_the_request_and_not_in_the_cache(self, web, cache_dir, caplog):
        web.password = "Basic " + base64.b64encode(b"alice:hunter2").decode()
        web.files["/x.tar.gz"] = tar_gz({"a": b""})
        with caplog.at_level(logging.INFO):
            local_path(self.url(web, "/x.tar.gz"), key=KEY)
        records = [path.read_text() for path in (cache_dir / "records").iterdir()]
        self.assert_silent(*snapshot(cache_dir), *records, caplog.text)
        assert f"{web.url}/x.tar.gz?…" in [json.loads(record).get("url") for record in records]

    def test_a_new_signature_is_the_same_source_and_another_id_is_not(self, web):
        web.files["/x.csv"] = b"1"
        for query in ("sig=one&id=1", "sig=two&id=1"):
            local_path(f"{web.url}/x.csv?{query}", key=KEY)
        assert len(web.gets()) == 1
        local_path(f"{web.url}/x.csv?sig=two&id=2", key=KEY)
        assert len(web.gets()) == 2

    def test_credentials_in_a_bucket_url_are_refused(self):
        with pytest.raises(SourceError, match="credentials in the URL of s3://bucket/x") as caught:
            local_path("s3://alice:hunter2@bucket/x", key=KEY)
        self.assert_silent(str(caught.value))

    def test_redact(self):
        text = "from https://alice:hunter2@host:8/p?sig=SIGNATURE, s3://b/x and (http://h/a#SIGNATURE)"
        assert redact(text) == "from https://host:8/p?… s3://b/x and (http://h/a"
        assert public_url("https://[bad/x") == "https://[bad/x"

    def test_is_remote(self):
        assert [is_remote(v) for v in ("s3://b/k", "HTTPS://h/x", "file:///x", "/a/b", "C:\\x", "a://b/../c")] == [
            *(True, True, False, False, False, True)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def s3_server():
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A client for the bucket ``line7``, with the usual variables set as a user would."""
    import boto3
    import requests

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"{s3_server}/moto-api/reset", timeout=10)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="line7")
    return client


class TestS3:
    def put(self, bucket, **objects):
        for name, data in objects.items():
            bucket.put_object(Bucket="line7", Key=name.replace("__", "/"), Body=data)

    def fetched(self, monkeypatch):
        """The names of the objects whose bytes are asked for from now on."""
        import s3fs

        names, real = [], s3fs.S3FileSystem._get_file

        async def counted(fs, rpath, *rest, **options):
            names.append(rpath)
            return await real(fs, rpath, *rest, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", counted)
        return names

    def test_archive_file_and_folder(self, bucket):
        files = {"board1/U5.jpg": b"five", "board2/U7.jpg": b"seven"}
        bucket.put_object(Bucket="line7", Key="data/images.tar.gz", Body=tar_gz(files))
        bucket.put_object(Bucket="line7", Key="data/rows.csv", Body=b"a,b")
        bucket.put_object(Bucket="line7", Key="data/images/", Body=b"")  # as the console marks a folder
        for name, data in files.items():
            bucket.put_object(Bucket="line7", Key=f"data/images/{name}", Body=data)
        assert contents(local_path("s3://line7/data/images.tar.gz", key=KEY)) == files
        assert local_path("s3://line7/data/rows.csv", key=KEY).read_bytes() == b"a,b"
        assert contents(local_path("s3://line7/data/images", key=KEY)) == files
        assert local_path("s3://line7/data/images/", key=KEY) == local_path("s3://line7/data/images", key=KEY)

    def test_only_what_changed_comes_again(self, bucket, monkeypatch):
        self.put(bucket, d__a=b"1", d__b=b"2", d__c=b"3")
        names = self.fetched(monkeypatch)
        first = local_path("s3://line7/d", key=KEY)
        assert sorted(names) == ["line7/d/a", "line7/d/b", "line7/d/c"]
        assert local_path("s3://line7/d", key=KEY) == first
        assert len(names) == 3
        self.put(bucket, d__b=b"two", d__e=b"5")
        bucket.delete_object(Bucket="line7", Key="d/c")
        second = local_path("s3://line7/d", key=KEY)
        assert sorted(names[3:]) == ["line7/d/b", "line7/d/e"]
        assert contents(second) == {"a": b"1", "b": b"two", "e": b"5"}
        assert contents(first) == {"a": b"1", "b": b"2", "c": b"3"}  # a run may be reading it

    def test_missing_object_and_bucket(self, bucket):
        with pytest.raises(SourceError, match="nothing at s3://line7/no"):
            local_path("s3://line7/no", key=KEY)
        with pytest.raises(SourceError, match="nothing at s3://other/no"):
            local_path("s3://other/no", key=KEY)

    def test_no_access(self, bucket):
        self.put(bucket, d__a=b"1")
        import s3fs
        from botocore.exceptions import ClientError

        refusal = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                s3fs.S3FileSystem, "info", lambda *_: (_ for _ in ()).throw(ClientError(refusal, "HeadObject"))
            )
            with pytest.raises(SourceError, match=r"no access to s3://line7/d .*403.*AWS_ACCESS_KEY_ID"):
                local_path("s3://line7/d", key=KEY)

    def test_names_that_lead_out_are_refused(self, bucket, tmp_path):
        bucket.put_object(Bucket="line7", Key="d/../../evil", Body=b"")
        with pytest.raises(SourceError, match="no relative path"):
            local_path("s3://line7/d", key=KEY)
        assert not list(tmp_path.rglob("evil"))

    def test_offline_with_a_copy(self, bucket, monkeypatch, caplog):
        import s3fs

        self.put(bucket, d__a=b"1")
        online = local_path("s3://line7/d", key=KEY)
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        assert local_path("s3://line7/d", key=KEY) == online
        assert "using the earlier copy" in caplog.text

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(MissingDependencyError, match=r"fiducial\[gcs\]"):
            local_path("gs://bucket/x", key=KEY)
