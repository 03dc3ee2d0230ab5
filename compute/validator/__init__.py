"""The validator: finds out what the miners' machines are, and sets weights by it."""
