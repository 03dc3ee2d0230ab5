"""What comes before every test.

Importing the SDK silences every logger that exists by then. So it comes first, before any module of ours has made one;
else a test that reads the log would depend on which tests ran before it.
"""

import bittensor  # noqa: F401
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
