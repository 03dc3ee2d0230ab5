"""A chain for one machine: a node that an unmodified bittensor SDK talks to, at ``ws://127.0.0.1:9944``.

It proves that the protocols fit together, not how finney behaves: money has no market, emission is shown and not paid,
nothing is charged for transactions, and blocks are final as they are made. Tests start one with
:class:`compute.localnet.process.NodeProcess`.

From the outside in: ``node`` (WebSocket and block clock), ``rpc`` and ``methods`` (JSON-RPC), ``ledger`` and ``pool``
(blocks and transactions), ``calls`` with ``weights``, ``serving`` and ``registration`` (the rules), ``epoch`` and
``yuma`` (consensus), ``state`` (values), ``store`` (SQLite). ``runtime`` is what clients are told that the chain can
do, and ``codec`` and ``metadata`` are how.
"""
