"""Renting machines as a service: the market, leases of one's own, their records, and what is done with them."""
