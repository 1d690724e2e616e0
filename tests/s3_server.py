"""An S3 server of this process's own: the part of the protocol that pyarrow speaks, over HTTP."""

import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from time import gmtime, strftime, time
from typing import BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape, unescape

# What a page of a listing holds: so few that tests see more than one.
PAGE = 50

# S3's words for what is wrong; its clients try again after some of them.
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass(frozen=True)
class Object:
    """What a key holds, since when (s since 1970)."""

    data: bytes
    modified: float = field(default_factory=time)

    @property
    def etag(self) -> str:
        """As S3 sends it, quotes and all."""
        return f'"{hashlib.md5(self.data).hexdigest()}"'


class S3Server(ThreadingHTTPServer):
    """Buckets, objects and unfinished uploads, all in memory; any key and secret will do.

    Attributes:
        buckets: objects by key, by the bucket's name; tests may change them.
        requests: method and path, such as `GET bucket/key`, of all that was asked, in order.
        faults: by method and path, the status that such a request ends with.
        on_request: called with method and path before a request is answered.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.buckets: dict[str, dict[str, Object]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.faults: dict[str, int] = {}
        self.on_request: Callable[[str], object] = lambda request: None
        self.numbers = count(1)

    def new_bucket(self) -> str:
        """An empty bucket's name, unlike any other's: filesystems are kept by it."""
        name = f"raysound-{uuid4().hex}"
        self.buckets[name] = {}
        return name

    @property
    def environment(self) -> dict[str, str]:
        """What makes pyarrow speak to this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def serve() -> Iterator[S3Server]:
    """A server on a free port, until the block ends."""
    with S3Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: S3Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing: the server keeps what was asked."""

    def handle_one_request(self) -> None:
        """A client that goes away is no error."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Every request comes here."""
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix("/")
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        self.server.on_request(request)
        body = self._body()
        bucket, _, key = path.partition("/")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        objects = self.server.buckets.get(bucket)
        if request in self.server.faults:
            status = self.server.faults[request]
            self._refuse(status, CODES[status])
        elif self.command == "PUT" and not key:
            self.server.buckets.setdefault(bucket, {})
            self._answer(200)
        elif objects is None:
            self._refuse(404, "NoSuchBucket")
        elif self.command in ("GET", "HEAD"):
            self._get(objects, key, query)
        elif self.command == "PUT":
            self._put(objects, key, query, body)
        elif self.command == "POST":
            self._post(objects, key, query, body)
        else:
            self._delete(objects, key, query)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = read_chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = read_chunks(io.BytesIO(body))
        return body

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(
            status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        )

    def _get(self, objects: dict[str, Object], key: str, query: dict[str, str]) -> None:
        if not key:
            self._answer(200, listing(objects, query).encode(), x_amz_bucket_region="us-east-1")
            return
        if key not in objects:
            self._refuse(404, "NoSuchKey")
            return
        item = objects[key]
        headers = {
            "ETag": item.etag,
            "Last_Modified": formatdate(item.modified, usegmt=True),
            "Accept_Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, item.data, **headers)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(item.data) - 1)
        if first >= len(item.data):
            self._refuse(416, "InvalidRange")
            return
        part = item.data[first : last + 1]
        place = f"bytes {first}-{first + len(part) - 1}/{len(item.data)}"
        self._answer(206, part, Content_Range=place, **headers)

    def _put(
        self, objects: dict[str, Object], key: str, query: dict[str, str], body: bytes
    ) -> None:
        if "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
        else:
            objects[key] = Object(body)
        self._answer(200, ETag=Object(body).etag)

    def _post(
        self, objects: dict[str, Object], key: str, query: dict[str, str], body: bytes
    ) -> None:
        if "delete" in query:
            for name in re.findall("<Key>(.*?)</Key>", body.decode()):
                objects.pop(unescape(name, {"&quot;": '"', "&apos;": "'"}), None)
            self._answer(200, b"<DeleteResult/>")
        elif "uploads" in query:
            upload = str(next(self.server.numbers))
            self.server.uploads[upload] = {}
            text = f"<UploadId>{upload}</UploadId>"
            self._answer(200, element("InitiateMultipartUploadResult", text))
        else:
            parts = self.server.uploads.pop(query["uploadId"])
            objects[key] = Object(b"".join(parts[number] for number in sorted(parts)))
            text = f"<ETag>{escape(objects[key].etag)}</ETag>"
            self._answer(200, element("CompleteMultipartUploadResult", text))

    def _delete(self, objects: dict[str, Object], key: str, query: dict[str, str]) -> None:
        if "uploadId" in query:
            self.server.uploads.pop(query["uploadId"], None)
        else:
            objects.pop(key, None)
        self._answer(204)


def element(name: str, text: str) -> bytes:
    return f"<{name}>{text}</{name}>".encode()


def listing(objects: dict[str, Object], query: dict[str, str]) -> str:
    """ListObjectsV2: keys in order, those that share what stands before a delimiter as one."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token", query.get("start-after", ""))
    room = min(int(query.get("max-keys", PAGE)), PAGE)
    entries: dict[str, Object | None] = {}
    for key in sorted(key for key in objects if key.startswith(prefix)):
        below, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        name = prefix + below + delimiter if found else key
        if name > after:
            entries.setdefault(name, None if found else objects[key])
    page = list(entries.items())[:room]
    text = "".join(
        f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        if item is None
        else f"<Contents><Key>{escape(name)}</Key><Size>{len(item.data)}</Size>"
        f"<ETag>{escape(item.etag)}</ETag><LastModified>"
        f"{strftime('%Y-%m-%dT%H:%M:%S.000Z', gmtime(item.modified))}</LastModified></Contents>"
        for name, item in page
    )
    rest = len(entries) > len(page)
    token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if rest else ""
    return (
        f"<ListBucketResult><KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{str(rest).lower()}</IsTruncated>{token}{text}</ListBucketResult>"
    )


def read_chunks(file: BinaryIO) -> bytes:
    """What a body in chunks of `size;signature CRLF data CRLF` holds, its trailers left out."""
    data = b""
    while size := int(file.readline().split(b";")[0], 16):
        data += file.read(size)
        file.readline()
    while file.readline().strip():
        pass
    return data
