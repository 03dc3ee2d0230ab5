"""The way between neurons: a caller over the SDK's Dendrite, a server over its Axon. Nothing else imports either."""
