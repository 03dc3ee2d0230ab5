"""What a running validator does for the rentals of its own database: keeps their receipts fresh, and ends one.

``register.py`` gives a miner its first receipt and is gone; a receipt is good for a week at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from compute.base.clock import Clock
from compute.base.errors import CallError, LeaseError
from compute.rental.evidence import Rental
from compute.rental.service import RenterService
from compute.wire.receipts import RENEW_SECONDS

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 3600.0


class RentalKeeper:
    """Acts as the owner of the rentals, with the keys that ``register.py`` has left in the database.

    ``renter`` opens the service when there is something to do; it may raise StoreError.
    """

    def __init__(self, renter: Callable[[], RenterService], clock: Clock) -> None:
        self._renter = renter
        self._clock = clock
        self._not_before: dict[str, float] = {}

    async def renew(self, alive: Collection[Rental]) -> None:
        """Give a new receipt to the miner of each of these rentals whose receipt has little time left.

        Raises:
            StoreError: the renter's tables cannot be used, or their key file is another one.
        """
        now = self._clock.now()
        wanting = {rental.host_key for rental in alive if now >= self._not_before.get(rental.host_key, 0.0)}
        if not wanting:
            return
        renter = self._renter()
        until = renter.receipts()
        for record in renter.allocations():
            if record.host_key not in wanting:
                continue
            good_until = until.get(record.host_key, 0.0)
            if good_until - now >= RENEW_SECONDS or good_until >= int(record.ends_at):
                continue
            # Before the miner is asked: one that hangs, or takes none, is asked again in an hour.
            self._not_before[record.host_key] = now + _RETRY_SECONDS
            try:
                await renter.renew_receipt(record.name)
            except (LeaseError, CallError) as error:
                logger.info("a miner took no receipt: %s", error, extra={"hotkey": record.hotkey})

    async def end(self, rental: Rental) -> None:
        """Deallocate the rental and forget it; one that is gone already is no error.

        Raises:
            LeaseError: the miner keeps it.
            CallError: the miner does not answer.
            StoreError: as ``renew``.
        """
        renter = self._renter()
        for record in renter.allocations():
            if record.host_key == rental.host_key:
                await renter.deallocate(record.name)
