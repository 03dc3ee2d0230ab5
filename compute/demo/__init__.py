"""A whole subnet on one machine: a chain, a validator, honest and dishonest miners, and a rental."""
