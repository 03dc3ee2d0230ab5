"""Importing the SDK silences every logger that exists by then. So it comes first, before any module of ours has made
one; else a test that reads the log would depend on which tests ran before it."""

import bittensor  # noqa: F401
