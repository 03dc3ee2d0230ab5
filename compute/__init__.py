"""A compute subnet for Bittensor: miners rent out GPU machines, validators prove what those machines are.

The three version constants are literal lines because peers read this file as text. The integer form of a version is
``100 * major + 10 * minor + patch``, so minor and patch never exceed 9.
"""

__version__ = "2.0.0"
__minimal_miner_version__ = "1.9.0"
__minimal_validator_version__ = "1.9.0"

FINNEY_NETUID = 27
TEST_NETUID = 15


def version_as_int(version: str) -> int:
    """``"1.9.3"`` → 193.

    Raises:
        ValueError: the text is not ``major.minor.patch`` with minor and patch from 0 to 9.
    """
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"version {version!r} is not major.minor.patch")
    major, minor, patch = (int(part) for part in parts)
    if minor > 9 or patch > 9:
        raise ValueError(f"version {version!r}: minor and patch must be 0 to 9, or two versions share one integer")
    return 100 * major + 10 * minor + patch


__version_as_int__ = version_as_int(__version__)
