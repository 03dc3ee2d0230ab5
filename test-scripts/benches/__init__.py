"""What ``bench.py`` measures, a section a file."""
