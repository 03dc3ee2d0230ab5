"""What every other room stands on: errors, reasons, clock, database, SSH, console, logs, metrics, options."""
