"""Fakes of what is outside, each behind the interface of the real one, and a subnet that is full."""
