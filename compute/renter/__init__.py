"""For people who rent machines: what ``neurons/register.py`` does, as a service, a command line and a shell."""
