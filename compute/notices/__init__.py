"""What an operator wants to hear of at once: a rental ended, a rented machine went away, it is back.

``notice`` says what is sent, ``outbox`` keeps it until it has arrived, ``delivery`` brings it there.
"""
