"""What every test stands on."""

import signal

# Started in the background of a script, we would hand an ignored SIGINT on to every program under test, and those that
# Ctrl-C must end would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
