"""What every test may count on."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell that started the tests ignores it
