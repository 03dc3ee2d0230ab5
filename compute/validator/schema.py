"""The validator's tables, version by version. Scripts are append-only: each leads to the next version."""

# The last script: ``notice_rental`` belonged to the notices, whose tables are made after these, so it may be missing.
# Which lease an event was about is not known: its row has no host key, and ends when the rentals have been looked at.
SCHEMA = (
    """
    CREATE TABLE specs (
        hotkey TEXT PRIMARY KEY, at REAL NOT NULL, block INTEGER NOT NULL,
        reason TEXT NOT NULL, specs TEXT, detail TEXT NOT NULL
    );
    CREATE TABLE verdict (
        id INTEGER PRIMARY KEY, hotkey TEXT NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL, seconds REAL NOT NULL,
        reason TEXT NOT NULL, claim_gpu TEXT NOT NULL, claim_count INTEGER NOT NULL,
        gpu TEXT, count INTEGER NOT NULL, tflops16 REAL, devices TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE INDEX verdict_of_hotkey ON verdict (hotkey, id);
    CREATE TABLE score (
        hotkey TEXT PRIMARY KEY, uid INTEGER NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL,
        total REAL NOT NULL, reason TEXT NOT NULL, breakdown TEXT NOT NULL
    );
    CREATE TABLE weights_journal (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, block INTEGER NOT NULL, state TEXT NOT NULL,
        weights TEXT NOT NULL, detail TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, hotkey TEXT NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL,
        kind TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE INDEX event_of_hotkey ON event (hotkey, id);
    CREATE TABLE leased_machine (
        hotkey TEXT PRIMARY KEY, host_key TEXT NOT NULL, at REAL NOT NULL, specs TEXT NOT NULL,
        differs_since INTEGER, change TEXT
    )
    """,
    """
    DROP INDEX verdict_of_hotkey;
    CREATE INDEX verdict_of_hotkey ON verdict (hotkey, id, reason)
    """,
    """
    CREATE TABLE IF NOT EXISTS notice_rental (
        rental TEXT PRIMARY KEY, hotkey TEXT NOT NULL, misses INTEGER NOT NULL, told_offline INTEGER NOT NULL
    );
    CREATE TABLE rental (
        hotkey TEXT NOT NULL, host_key TEXT NOT NULL, source TEXT NOT NULL, validator TEXT NOT NULL,
        first_seen REAL NOT NULL, until REAL, last_alive REAL, misses INTEGER NOT NULL, ended REAL,
        specs TEXT, differs_since INTEGER, change TEXT, told_rented TEXT, told_offline INTEGER NOT NULL,
        PRIMARY KEY (hotkey, host_key)
    );
    INSERT INTO rental
        SELECT hotkey, rental, 'own', '', coalesce(
            (SELECT max(at) FROM event WHERE event.hotkey = notice_rental.hotkey AND kind = 'rented'),
            strftime('%s', 'now')
        ), NULL, NULL, misses, NULL, NULL, NULL, NULL, NULL, told_offline
        FROM notice_rental;
    INSERT INTO rental
        SELECT hotkey, host_key, 'receipt', '', at, NULL, NULL, 0, at, specs, differs_since, change, NULL, 0
        FROM leased_machine WHERE true
        ON CONFLICT (hotkey, host_key) DO UPDATE SET
            specs = excluded.specs, differs_since = excluded.differs_since, change = excluded.change;
    INSERT INTO rental
        SELECT hotkey, '', 'receipt', '', at, NULL, NULL, 0, at, NULL, NULL, NULL, detail, 0
        FROM event WHERE kind = 'rented' AND id IN
            (SELECT max(id) FROM event WHERE kind IN ('rented', 'free') GROUP BY hotkey);
    DROP TABLE notice_rental;
    DROP TABLE leased_machine
    """,
)
