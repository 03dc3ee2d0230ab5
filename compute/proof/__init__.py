"""Proof of GPU: how many devices a machine has, which model each is, and that all of them are free right now.

``session.prove_batch`` is the way in. ``generator``, ``digest``, ``statement``, ``frames``, ``verifier`` and
``fingerprint`` are pure; ``worker`` is the one file that runs on the miner's machine.
"""
