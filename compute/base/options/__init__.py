"""Options as data: declared once, parsed, explained and typed. Importing this imports neither argv nor the SDK."""
