"""What ``neurons/register.py`` is at a terminal: commands, shell, views, exit codes."""
