"""Leases: one machine, who has it, until when, with which keys."""
