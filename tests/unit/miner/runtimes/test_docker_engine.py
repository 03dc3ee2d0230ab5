"""What the engine says, as the runtime hears it."""

from __future__ import annotations

import docker.errors
import pytest

from compute.base.errors import RuntimeFailure
from compute.miner.runtimes.docker_engine import (
    ImageMissing,
    Missing,
    NameTaken,
    PortTaken,
    ProgramMissing,
    QuotaUnsupported,
    failure_of,
)


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (docker.errors.APIError, "listen tcp4 0.0.0.0:4444: bind: address already in use", PortTaken),
        (docker.errors.APIError, "Ports are not available: Port Is Already Allocated", PortTaken),
        (docker.errors.ImageNotFound, "whatever", ImageMissing),
        (docker.errors.NotFound, "No such container: x", Missing),
        (docker.errors.APIError, 'Conflict. The container name "/x" is already in use by container "y"', NameTaken),
        (docker.errors.APIError, "--storage-opt is not supported for aufs", QuotaUnsupported),
        (
            docker.errors.APIError,
            'exec: "/usr/sbin/nft": stat /usr/sbin/nft: no such file or directory',
            ProgramMissing,
        ),
        (docker.errors.APIError, 'exec: "nft": executable file not found in $PATH: unknown', ProgramMissing),
        (docker.errors.APIError, "anything at /etc/secret", RuntimeFailure),
    ],
)
def test_what_the_engine_says_becomes_a_reason(
    kind: type[docker.errors.APIError], message: str, expected: type[RuntimeFailure]
) -> None:
    failure = failure_of(kind("500", explanation=message), "do it")
    assert type(failure) is expected
    assert "/etc" not in str(failure)
