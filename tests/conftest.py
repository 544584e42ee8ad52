"""What every test may count on."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each would wait for one another
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell that started the tests ignores it
