"""An S3-compatible server as a process of its own, that knows one user and refuses everybody else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

BUCKET = "pictures"
POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


@dataclass(frozen=True)
class ObjectServer:
    """Where the server is, and the credentials that it takes."""

    url: str
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """What tells ddx of it, as any program for S3."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    def client(self, service: str = "s3") -> Any:
        """A client of Amazon's own library."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def upload(self, path: Path, prefix: str) -> None:
        """Put a file, or all files below a folder, under `prefix`."""
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        client = self.client()
        for file in files:
            name = file.name if path.is_file() else file.relative_to(path).as_posix()
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=file.read_bytes())


@contextmanager
def serve_objects() -> Iterator[ObjectServer]:
    """Start the server on a free port of the loopback address, with an empty bucket."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"Running on (http://\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield _with_user(found.group(1))
    finally:
        process.kill()
        process.communicate()


def _with_user(url: str) -> ObjectServer:
    anybody = ObjectServer(url, "anybody", "nothing")
    iam = anybody.client("iam")
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=POLICY)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    # From now on every request must be signed by that user.
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request).close()
    server = ObjectServer(url, key["AccessKeyId"], key["SecretAccessKey"])
    server.client().create_bucket(Bucket=BUCKET)
    return server
