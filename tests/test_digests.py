"""Digests: those of `hashlib`, which is imported for what is large."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from dl import digests
from tests.support.paths import ROOT


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 100_000, digests.LARGE_BYTES, digests.LARGE_BYTES + 1])
def test_digests_are_those_of_hashlib(size: int) -> None:
    """Of bytes and of views, by the interpreter's own code as by OpenSSL's."""
    data = bytes(range(256)) * (size // 256 + 1)
    own = digests._own()
    expected = hashlib.sha256(data[:size]).digest()

    assert digests.sha256(data[:size]) == expected
    assert digests.sha256(memoryview(data)[:size]) == expected
    assert own is None or own(data[:size]).digest() == expected


def test_little_is_digested_without_openssl() -> None:
    """Only a large content imports `hashlib`, where the interpreter has code of its own."""
    code = (
        "import sys; from dl import digests as d; d.sha256(bytes(d.LARGE_BYTES - 1)); first = 'hashlib' in sys.modules; "
        "d.sha256(bytes(d.LARGE_BYTES)); print(d._own() is None or (first, 'hashlib' in sys.modules) == (False, True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "True"
